"""A tokenizer whose every token is markup, for tests of pages that show tokens and texts."""

PIECES = (
    "<img src=http://example.org/x.png onerror=alert(1)>", "<script>alert(2)</script>", "![x](http://example.org/y.png)",
    "$\\href{javascript:alert(3)}{x}$", "\u202e[l](javascript:alert(4))\x1b[2J",
)  # fmt: skip


class Hostile:
    """Another tokenizer, but for what its ids mean."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def piece(self, token):
        return PIECES[token % len(PIECES)]

    def decode(self, ids):
        return "".join(map(self.piece, ids))
