"""How matrices lie in the memory of a TPU. Imports no JAX."""


def crosses_tiles(rows: int, columns: int) -> bool:
    """Whether pieces of a large table, of so many rows each, begin inside of tiles, which have eight.

    For a reshape from or to such pieces XLA:TPU writes out what it does to every tile of a row. Of Gemma 3 27B's table
    (262,208 ids; of 5,376 channels each of 64 chips has 84, each of 256 has 21) one such reshape was 30 s of compiling
    for 64 v5p, and over 100 s for 256 v6e (libtpu 0.0.46). Of 32,000 columns it makes no difference.
    """
    return rows % 8 != 0 and columns >= 2**15
