"""The templates of a wiki whose text belongs to the sentence: a table of names, and what each leaves behind.

A template is a page of its own that a dump of articles does not hold; what it would show is known here for a few
hundred names, in the languages that use them (English, German, French, Spanish, Italian, Portuguese, Dutch, Polish,
Swedish, Russian, Ukrainian, Japanese, Chinese, Arabic, Bengali, Hindi). All others leave nothing: they are boxes,
hatnotes, citations, pronunciations, coordinates.

| group            | examples                                | becomes                |
|------------------|-----------------------------------------|------------------------|
| text, one place  | `{{nowrap|a b}}`, `{{lang|fr|mot}}`     | `a b`, `mot`           |
| foreign word     | `{{lang-bn|বাংলা}}`                     | `বাংলা`                |
| quantities       | `{{convert|10|-|12|km|mi}}`, `{{unité|3|m}}` | `10–12 km`, `3 m` |
| numbers          | `{{frac|1|2}}`, `{{val|5|u=kg}}`, `{{e|6}}`  | `1/2`, `5 kg`, `×10⁶` |
| dates            | `{{as of|2010}}`, `{{circa|1900}}`, `{{date|3|mai|1900}}` | `As of 2010`, `c. 1900`, `3 mai 1900` |
| red links        | `{{ill|Name|de}}`, `{{仮リンク|名|en}}` | `Name`, `名`           |
| marks            | `{{ndash}}`, `{{'}}`, `{{zwnj}}`        | `–`, `'`, U+200C       |
| lists, quotes    | `{{ubl|a|b}}`, `{{quote|text}}`         | lines, `text`          |
"""

from __future__ import annotations

import re
from collections.abc import Callable

HOLE = "\x01"
"""Stands where something was taken out, so that what it leaves ("()", " ,") can be mended there, and only there."""

_UP = str.maketrans("0123456789+-\u2212\u2013=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁻⁼⁽⁾ⁿ")
_DOWN = str.maketrans("0123456789+-\u2212\u2013=()", "₀₁₂₃₄₅₆₇₈₉₊₋₋₋₌₍₎")
_MONTHS = (
    "January February March April May June July August September October November December".split()  # as numbers 1-12
)


def raised(text: str) -> str:
    """`2` of 10 to the power of 2 as a character of its own, since 102 is another number; letters stay as they are."""
    return text.translate(_UP) if re.fullmatch(r"[-+\u2212\u2013=()n\d]{1,12}", text, re.ASCII) else text


def lowered(text: str) -> str:
    """As `raised`, for the 2 of water."""
    return text.translate(_DOWN) if re.fullmatch(r"[-+\u2212\u2013=()\d]{1,12}", text, re.ASCII) else text


class Arguments:
    """What stands behind the name of a template."""

    def __init__(self, raw: list[str]):
        self.named: dict[str, str] = {}
        position = 0
        for one in raw:
            key, equals, value = one.partition("=")
            if not equals:
                position += 1
                key, value = str(position), one
            self.named[key.strip().lower()] = value.strip()
        self.count = position

    def __getitem__(self, key: int | str) -> str:
        return self.named.get(str(key), "")

    def first_of(self, *keys: int | str) -> str:
        return next((value for key in keys if (value := self[key])), "")

    @property
    def listed(self) -> list[str]:
        """Those without a name, or with a number as one, that are not empty."""
        keys = sorted((int(k) for k in self.named if k.isascii() and k.isdigit() and len(k) < 4), key=int)
        return [self[key] for key in keys if self[key]]


Shown = Callable[[Arguments], str]


def _at(*keys: int | str) -> Shown:
    return lambda arguments: arguments.first_of(*keys)


def _block(*keys: int | str) -> Shown:
    return lambda arguments: f"\n{arguments.first_of(*keys)}\n"


def _text(value: str) -> Shown:
    return lambda arguments: value


def _before(mark: str) -> Shown:
    return lambda arguments: f"{mark}{arguments[1]}"


def _joined(separator: str) -> Shown:
    return lambda arguments: separator.join(arguments.listed)


def _lines(arguments: Arguments) -> str:
    return "\n" + "\n".join(f"* {one}" for one in arguments.listed) + "\n"


_RANGES = {"-": "–", "–": "–", "to": " to ", "to(-)": " to ", "and": " and ", "or": " or ", "x": " × ", "×": " × ",
           "by": " by ", "+/-": " ± ", "±": " ± ", ",": ", ", "&": " & "}  # fmt: skip
_UNITS = {"km2": "km²", "m2": "m²", "cm2": "cm²", "km3": "km³", "m3": "m³", "cm3": "cm³", "sqmi": "sq mi",
          "sqft": "sq ft", "cuft": "cu ft", "C": "°C", "F": "°F", "kph": "km/h", "km/h": "km/h", "impgal": "imp gal",
          "USgal": "US gal", "lbf": "lbf", "nmi": "nmi", "acre": "acres", "acres": "acres",
          "mi2": "sq mi", "ft2": "sq ft"}  # fmt: skip
_SMALL_UNITS = {"ft", "in", "yd", "mi", "lb", "oz", "st", "ch", "fur"}


def _convert(arguments: Arguments) -> str:
    """Value and unit as given, without what they are in other units."""
    values = [arguments[key] for key in range(1, 12)]
    out, at = values[0], 1
    while values[at] in _RANGES and at + 2 < len(values):
        out += _RANGES[values[at]] + values[at + 1]
        at += 2
    out += f" {_UNITS.get(values[at], values[at])}"
    while (
        at + 2 < len(values)
        and {values[at], values[at + 2]} <= _SMALL_UNITS
        and re.match(r"\d", values[at + 1])
    ):
        out += f" {values[at + 1]} {values[at + 2]}"
        at += 2
    return out.strip()


def _fraction(arguments: Arguments) -> str:
    values = arguments.listed
    if len(values) > 2:
        return f"{values[0]} {values[1]}/{values[2]}"
    return "/".join(values) if len(values) == 2 else "1/" + "".join(values)


def _value(arguments: Arguments) -> str:
    out = arguments[1]
    out += f" ± {arguments[2]}" if arguments[2] else ""
    out += f"×10{raised(arguments['e'])}" if arguments["e"] else ""
    unit = arguments.first_of("u", "ul", "up", "upl")
    return f"{out} {unit}" if unit else out


def _as_of(arguments: Arguments) -> str:
    start = "as of" if arguments["lc"] or arguments["since"] else "As of"
    year, month, day = arguments[1], arguments[2], arguments[3]
    if month.isdigit() and 1 <= int(month[:4]) <= 12:
        month = _MONTHS[int(month) - 1]
    return " ".join(part for part in (start, day, month, year) if part)


def _circa(arguments: Arguments) -> str:
    return f"c. {'–'.join(arguments.listed)}".strip()


def _nihongo(arguments: Arguments) -> str:
    inner = ", ".join(one for one in (arguments[2], arguments[3]) if one)
    return f"{arguments[1]} ({inner})" if arguments[1] and inner else arguments[1] or inner


def _chemistry(arguments: Arguments) -> str:
    return "".join(raised(one) if one[-1] in "+-" else lowered(one) for one in arguments.listed)


def _ship(arguments: Arguments) -> str:
    return " ".join(one for one in (arguments[1], arguments[2]) if one)


def _century(arguments: Arguments) -> str:
    return f"{arguments[1]}e siècle"


def _same(shown: Shown, names: str) -> dict[str, Shown]:
    return {name.strip(): shown for name in names.split(",")}


TEMPLATES: dict[str, Shown] = {
    # The text is in one place.
    **_same(
        _at(1, "text", "content"),
        "nowrap, nobr, nobold, noitalic, small, smaller, big, bigger, large, larger, huge, em, strong, bold, italic, "
        "abbr, abbrlink, tooltip, hint, sic, not a typo, notatypo, typo, as written, chem name, proper name, vanchor, "
        "visible anchor, smallcaps, small caps, sc, sc1, sc2, caps, allcaps, smallcaps2, mono, code, mvar, "
        "math, var, bigmath, overline, underline, ul, strikethrough, script, nastaliq, linktext, ill, illm, ill2, "
        "interlanguage link, interlanguage link multi, link-interwiki, linkfr, red link, format price, formatnum, "
        "nts, number, ruby, rubyja, zh-ruby, unicode, kbd, keypress, samp, tt, monospace, okina text, transl-text, "
        "my, big5, nihongo core, flag, flagcountry, flagu, flaglist, flagdeco, noflag, country, language with name, "
        "pad, no wrap, nw, no break, mdash text, first word, okeh, cns, citation needed span, "
        "tq, talkquote, dy, ref2text, ordinal, ord, romanum, roman, "
        # German, French, Spanish, Italian, Portuguese, Dutch, Polish, Swedish, Catalan
        "nowrap2, kapitälchen, sperrschrift, nobr., petites capitales, pc, souligner, exposantr, "
        "citation, « , «, nombre, num, formatnum2, versalita, versalitas, may, esd, enlace roto, maiuscoletto, "
        "nombre simple, formatperc, fmtn, no quebrar, versalete, kapitaliki, ej bruten, "
        # Russian, Ukrainian, Bengali, Hindi, Japanese, Chinese, Korean, Arabic
        "s, число, num, комментарий, comment, nobr, unité simple, মূল পাঠ্য, ছোট, বড়, নোর‍্যাপ, ইংলিশ, छोटा, "
        "仮リンク, 読み仮名, 読み仮名 ruby不使用, 読み, ルビ, ふりがな, fontsize, 루비, 빈 링크, link-en, link-ja, "
        "link-de, link-fr, link-ru, le, internal link helper/en, internal link helper/ja, 僻字, 잘못된 한자, "
        "وصلة إنترويكي, صغير",
    ),
    **_same(
        _at(2, "text", "texte", "testo", "texto"),
        "lang, langue, lingua, langx, fremdsprache, j, w języku, lång, idioma, мова, ভাষা, भाषा, لغة, lang-xx, "
        "color, colour, font color, fontcolor, farbe, couleur, background color, bg, fg, citation étrangère, "
        "script/arabic, xlit, resize, size, font, hs2, dunkelgrau, цвет, color text, colored text",
    ),
    **_same(lambda a: a.first_of(3, 2, 1), "transl, transliteration, translit, tsl"),
    **_same(
        lambda a: a.first_of(2, 1),
        "нп, нп2, нп3, нп4, нп5, нп1, не переведено, не переведено 2, не переведено 3, "
        "не переведено 4, не переведено 5, iw, iw2, нп6, link, internal link, lien simple",
    ),  # fmt: skip
    "lien": _at("texte", "fr", "trad", 1),
    # Quotations and lists: blocks of their own.
    **_same(
        _block(1, "text", "quote", "content", "texte", "texto", "testo", "contenu", "текст"),
        "quote, quotation, blockquote, block quote, cquote, rquote, quote box2, bquote, centered pull quote, "
        "poemquote, poem quote, poem, verse, zitat, cita, citação, citazione, citaat, cytat, citat, цитата, цитата2, "
        "quote2, 引用, 引文, 인용문, উক্তি, উদ্ধৃতি, উদ্ধৃতি ২, उद्धरण, اقتباس, epigraph, эпиграф, columns-list, colist, "
        "columnslist, plainlist, plain list, flatlist, col-list, multicol list, center, centre, align, indent, "
        "block indent, blockindent",
    ),
    **_same(
        _lines,
        "vunblist, ubl, ublist, unbulleted list, bulleted list, blist, ordered list, olist, numbered list",
    ),
    **_same(_joined(", "), "hlist, comma separated entries, comma-separated entries, csl, cslist"),
    # Quantities and numbers.
    **_same(
        _convert,
        "convert, cvt, converter, convertir, conversion, 単位変換, রূপান্তর, kilometres, "
        "unit, unité, unidad, unità, num unit, unite, перевести, unidade",
    ),  # fmt: skip
    **_same(_fraction, "frac, fraction, sfrac, nfrac, vfrac, bruch, fract"),
    **_same(_value, "val"),
    **_same(lambda a: f"×10{raised(a[1])}", "e, esp"),
    **_same(lambda a: f"10{raised(a[1])}", "10^"),
    **_same(lambda a: raised(a[1]), "sup, exp, superscript, hoch"),
    **_same(lambda a: lowered(a[1]), "sub, ind, subscript"),
    **_same(_before("√"), "sqrt, radic"),
    **_same(_chemistry, "chem, chemf"),
    **_same(_at(1), "chem2, ce"),
    **_same(_before("US$"), "us$, usd, us dollar"),
    **_same(_before("A$"), "a$, aud, au$"),
    **_same(_before("C$"), "cad, c$, ca$"),
    **_same(_before("£"), "£, gbp, pound sterling"),
    **_same(_before("€"), "€, eur, euro"),
    **_same(_before("¥"), "¥, jpy, jp¥, cny"),
    **_same(_before("₹"), "₹, inr, indian rupee, rupee, inrconvert"),
    **_same(_before("৳"), "৳, bdt, টাকা"),
    **_same(lambda a: f"⟨{a[1]}⟩", "angle bracket, angbr, angle brackets, grapheme"),
    # Dates.
    **_same(_as_of, "as of, asof"),
    **_same(_circa, "circa, c., ca., c, ca"),
    **_same(_before("fl. "), "floruit, fl, fl."),
    **_same(lambda a: f"r. {'–'.join(a.listed)}", "reign, r."),
    **_same(
        _joined(" "),
        "date, дата, oldstyledate, sortname, date-, datum, sclass-, jour, heure2, date de naissance simple",
    ),  # fmt: skip
    **_same(_century, "siècle, s-, -s, s2"),
    **_same(lambda a: "av. J.-C.", "av jc, avjc, av. j.-c., -jc"),
    **_same(lambda a: "apr. J.-C.", "apr jc, ap jc, apjc"),
    "1er": _text("1er"),
    "ier": _text("Ier"),
    "er": _text("er"),
    "mme": _text("Mme"),
    "m.": _text("M."),
    **_same(lambda a: "-".join(a.listed[:2]), "simplenuclide, simplenuclide2, nuclide, nuclide2"),
    # Names.
    **_same(_nihongo, "nihongo, nihongo2, nihongo3, nihongo4, japonais, jap"),
    **_same(_ship, "ship"),
    **{
        name: (lambda a, name=name: f"{name.upper()} {a[1]}")
        for name in "uss hms ss ms mv rms hmcs hmas usns usat sms".split()
    },  # fmt: skip
    **_same(lambda a: f"{a[1]}-class {a[2]}".strip(), "sclass, sclass2"),
    # Marks.
    **_same(_text("–"), "ndash, en dash, endash, –"),
    **_same(_text("—"), "mdash, mdashb, em dash, emdash, —"),
    **_same(_text(" – "), "snd, spnd, spaced ndash, spaced en dash, snds, spacedendash, nbsndns, tiret"),
    **_same(_text(" — "), "spaced mdash, smd, spaced em dash"),
    **_same(_text(" · "), "·, dot, middot, bull, •, bullet, wrap dot, w•, w·"),
    **_same(_text(" "), "nbsp, space, spaces, thinsp, hair space, sp, nnbsp"),
    **_same(_text("'"), "', apostrophe, '-"),
    **_same(_text("ʻ"), "okina, ʻokina"),
    **_same(_text("ʼ"), "hamza, ayin"),
    **_same(lambda a: f"\u201c{a[1]}\u201d", '", dq, double quote'),
    "'s": _text("'s"),
    **_same(_text("="), "=, equals"),
    **_same(_text("\u200c"), "zwnj"),
    **_same(_text("\u200d"), "zwj"),
    **_same(_text("…"), "ellipsis, ..., …"),
    **_same(_text("π"), "pi"),
    **_same(_text("+"), "plus"),
    **_same(_text("×"), "times, ×"),
    **_same(_text("\u2212"), "minus, −"),
    **_same(_text("♯"), "music sharp, sharp, music/sharp"),
    **_same(_text("♭"), "flat, music flat"),
}

_PREFIXED = re.compile(r"(?:lang|мова|язык|ভাষা)[-‑ ]([a-z]{2,3})(?:[-‑ ][a-z]+)*")
_FUNCTIONS: dict[str, Callable[[str], str]] = {
    "formatnum": str, "lc": str.lower, "uc": str.upper, "lcfirst": lambda t: t[:1].lower() + t[1:],
    "ucfirst": lambda t: t[:1].upper() + t[1:], "plural": lambda t: HOLE,
}  # fmt: skip
_TITLES = {"pagename", "fullpagename", "basepagename", "subpagename"}


def shown(content: str, title: str) -> str:
    """What a template shows, as far as that is known, and a HOLE otherwise.

    Args:
      content: what stands between its braces; templates and links inside are text already.
      title: of the page it stands on.
    """
    raw = content.split("|")
    name = " ".join(raw[0].replace("_", " ").split()).lower()
    for prefix in ("safesubst:", "subst:", "template:", "msgnw:"):
        name = name.removeprefix(prefix).strip()
    if (known := TEMPLATES.get(name)) is not None:
        return known(Arguments(raw[1:])) or HOLE
    if name in _TITLES:
        return title
    if _PREFIXED.fullmatch(name):
        return Arguments(raw[1:]).first_of(1, "text") or HOLE
    function, colon, _ = name.partition(":")
    if colon and function in _FUNCTIONS:
        return _FUNCTIONS[function](raw[0].partition(":")[2].strip())
    return HOLE
