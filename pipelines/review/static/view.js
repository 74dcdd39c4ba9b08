// The view: the images that pass the filters, as row numbers that are loaded at once. A position is an index into it.

export const view = {
  rows: new Int32Array(), // in order
  query: null, // URLSearchParams: the filters that the rows were found by
  number: 0, // of the last request for a view; answers to earlier ones are dropped
  cursor: 0, // position
  anchor: 0, // position that a selection by Shift starts at
  chosen: new Set(), // positions
};
