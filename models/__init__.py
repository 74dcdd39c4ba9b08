"""Networks and the rules that train them. Tensors in, tensors out; nothing here opens a file."""
