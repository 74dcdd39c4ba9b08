"""Check and evaluate the SQL condition of `--where`: one expression, evaluated row by row, that reads nothing else.

DuckDB evaluates it without access to files or network and with its settings locked. The expression is also parsed
beforehand, and may contain only columns, constants, operators and deterministic functions: no second statement, no
subquery, no aggregate, no clock, no random numbers.
"""

import difflib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import BadInput, first_line
from pipelines.pool.manifest import Pool, shard_of

_ALLOWED = {
    "BETWEEN", "CASE", "CAST", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION", "OPERATOR", "TYPE",
}  # fmt: skip
_SHOWN = 8  # values of a column


class Where:
    """A checked condition; `mask` applies it to the rows of a shard."""

    def __init__(
        self, condition: str, schema: pa.Schema, without: Collection[str] = (), why: str = "", pool: Pool | None = None
    ) -> None:
        """Check `condition` against the columns of `schema`; those in `without` are empty here, and `why` says why.

        The crawl's further facts in the manifests of `pool` are columns as well; they are read where they are used.

        Raises BadInput if the condition is wrong, not allowed, or about an empty column.
        """
        self._condition, self._without, self._why, self._pool = condition, without, why, pool
        self._facts: list[str] = []  # that the condition uses
        self._columns: list[str] = []  # that the condition uses
        self._connection = duckdb.connect(
            config={
                "enable_external_access": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "threads": 1,  # a shard is small, and one thread keeps its order
            }
        )
        self._connection.execute("SET python_enable_replacements = false")  # else a name may refer to a Python variable
        self._connection.execute("SET lock_configuration = true")
        try:
            self._check([*schema.names, *(pool.facts.names if pool else ())])
        except RecursionError:
            raise self._refusal("it is nested too deeply") from None
        self.mask(schema.empty_table())

    def mask(self, rows: pa.Table) -> npt.NDArray[np.bool_]:
        """Whether each of `rows` (N,) meets the condition; NULL counts as no."""
        with self._connection.cursor() as cursor:
            cursor.register("images", _without_float16(self._with_facts(rows)))
            try:
                answer = cursor.sql(f"SELECT ({self._condition}\n) AS met FROM images").to_arrow_table()["met"]
            except duckdb.Error as error:
                raise self._refusal(first_line(error)) from None
        if answer.type not in (pa.bool_(), pa.null()):
            raise self._refusal(f"it is a value ({answer.type}), not a condition: compare it with something")
        return np.asarray(answer.cast(pa.bool_()).fill_null(False).to_numpy(zero_copy_only=False), dtype=bool)

    def _with_facts(self, rows: pa.Table) -> pa.Table:
        """Append the facts that the condition uses to rows of one shard."""
        if self._pool is None or not self._facts:
            return rows
        columns = pa.table(
            [pa.array([], kind) for kind in (self._pool.facts.field(name).type for name in self._facts)], self._facts
        )
        if rows.num_rows:
            found = self._pool.rows(shard_of(rows["key"][0].as_py()), ["key", *self._facts])
            columns = found.take(pc.index_in(rows["key"], value_set=found["key"].combine_chunks())).drop_columns(
                ["key"]
            )
        for name in self._facts:
            rows = rows.append_column(name, columns[name])
        return rows

    def values(self, tables: Iterable[pa.Table]) -> str:
        """What stands in the columns of the condition, in words, for whoever finds that no row meets it."""
        counts, ranges = defaultdict[str, Counter[str]](Counter), dict[str, tuple[Any, Any]]()
        for rows in map(self._with_facts, tables):
            for name in dict.fromkeys(self._columns):
                column = rows[name]
                if pa.types.is_string(column.type) or pa.types.is_boolean(column.type):
                    for each in pc.value_counts(column).to_pylist():
                        counts[name][str(each["values"])] += each["counts"]
                elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
                    found = pc.min_max(column).as_py()
                    low, high = ranges.get(name, (found["min"], found["max"]))
                    both = [value for value in (low, high, found["min"], found["max"]) if value is not None]
                    ranges[name] = (min(both), max(both)) if both else (None, None)
        said = [f"{name} is {_listed(each)}" for name, each in counts.items()]
        said += [f"{name} lies between {a:.4g} and {b:.4g}" for name, (a, b) in ranges.items() if a is not None]
        return "; ".join(said)

    def close(self) -> None:
        """Close the database, which is in memory only."""
        self._connection.close()

    def _check(self, columns: Sequence[str]) -> None:
        expression = self._parse()
        functions = self._pure_functions()
        for node in _nodes(expression):
            kind = node["class"]
            if kind not in _ALLOWED:
                raise self._refusal(
                    f"{kind.lower().replace('_', ' ')} is not allowed: write one condition on the columns of a row"
                )
            if kind == "FUNCTION" and node["function_name"].lower() not in functions:
                raise self._refusal(
                    f"{node['function_name']}() is not allowed: use deterministic per-row functions only"
                )
            if kind == "COLUMN_REF":
                name = ".".join(node["column_names"])
                if name.lower() not in (column.lower() for column in columns):  # as DuckDB compares them
                    near = difflib.get_close_matches(name, columns, n=1)
                    hint = (
                        f"did you mean {near[0]!r}?"
                        if near
                        else (f"if it is text, put it in single quotes: '{name}'. The columns are {', '.join(columns)}")
                    )
                    raise self._refusal(f"there is no column {name!r}; {hint}")
                self._columns.append(next(column for column in columns if column.lower() == name.lower()))
                if self._pool and name.lower() in self._pool.facts.names and name.lower() not in self._facts:
                    self._facts.append(name.lower())
                if name.lower() in self._without:
                    raise self._refusal(f"{name} is empty, because {self._why}")

    def _parse(self) -> dict[str, Any]:
        """Parse the condition into its syntax tree. BadInput if there is anything beside one expression."""
        tree, plain = self._tree(self._condition), self._tree("true")
        expressions, _ = tree.pop("select_list", ()), plain.pop("select_list")
        if len(expressions) != 1 or tree != plain or not self._condition.strip():
            raise self._refusal("it must be one condition on the columns of a row")
        expression = expressions[0]
        assert isinstance(expression, dict)
        return expression

    def _tree(self, condition: str) -> dict[str, Any]:
        sql = f"SELECT ({condition}\n)"  # the line break ends a comment, which would hide our parenthesis
        try:
            row = self._connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
        except duckdb.Error as error:
            raise self._refusal(first_line(error)) from None
        assert row is not None
        tree = json.loads(row[0])
        if tree["error"] or len(tree["statements"]) != 1:
            raise self._refusal(self._misread(tree, sql))
        node = tree["statements"][0]["node"]
        assert isinstance(node, dict)
        return node

    def _misread(self, tree: dict[str, Any], sql: str) -> str:
        """What DuckDB cannot read in the condition, and where."""
        said, position = tree.get("error_message") or "it must be one condition", tree.get("position")
        if position is None:
            return said
        before = sql[: int(position)].removeprefix("SELECT (")
        if before.strip() == self._condition.strip():
            return "it ends too early"
        return f"{said}, after {before.rstrip()[-30:]!r}" if before.strip() else said

    def _pure_functions(self) -> set[str]:
        found = self._connection.execute(
            "SELECT function_name FROM duckdb_functions() GROUP BY function_name "
            "HAVING bool_and(coalesce(function_type = 'scalar' AND stability = 'CONSISTENT', false))"
        )
        return {name for (name,) in found.fetchall()}

    def _refusal(self, reason: str) -> BadInput:
        shown = self._condition if len(self._condition) <= 200 else f"{self._condition[:200]}..."
        end = "" if reason.endswith("?") else "."
        return BadInput(f"--where {shown!r}: {reason.rstrip('.!')}{end}")


def _listed(counts: Counter[str]) -> str:
    shown = ", ".join(f"{value} ({count:,})" for value, count in counts.most_common(_SHOWN))
    return shown + (f" and {len(counts) - _SHOWN:,} more" if len(counts) > _SHOWN else "")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every expression in a syntax tree."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def _without_float16(rows: pa.Table) -> pa.Table:
    """Widen the probabilities, because DuckDB has no half floats."""
    for i, field in enumerate(rows.schema):
        if field.type == pa.list_(pa.float16()):
            rows = rows.set_column(i, field.name, rows[field.name].cast(pa.list_(pa.float32())))
    return rows
