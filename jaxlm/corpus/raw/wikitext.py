"""From the markup of MediaWiki to the text of an article; one linear scan, for every language.

    plain_text("'''Dhaka''' ({{lang-bn|ঢাকা}}) is the [[capital city|capital]].{{citation needed}}")
    -> "Dhaka (ঢাকা) is the capital."

| markup                                       | becomes                                                        |
|----------------------------------------------|----------------------------------------------------------------|
| `[[page|text]]`, `[[page]]`, `[http://x text]` | `text`, `page`, `text`                                       |
| `[[File:...]]`, `[[Category:...]]`, `[[de:...]]` | nothing, in the words of thirty languages and of the dump itself |
| `== Heading ==`                              | a line `Heading` between blank ones; nothing if nothing is below it |
| `* item`, `# item`; `: indented`, `; term`   | `- item`; the text                                             |
| `* [http://x ...]`                           | nothing: a line of "External links"                            |
| `''`, `'''`, `<b>`, `<span ...>`, `__TOC__`  | nothing; what they enclose stays                               |
| templates                                    | what wikitext_templates knows of them, or nothing              |
| `{| tables |}`, `<ref>`, `<gallery>`, comments | nothing                                                      |
| `<math>x^2</math>`                           | `$x^2$` (`$$` as a block): without it sentences lose their subject |
| `<sup>2</sup>`, `<sub>2</sub>`               | `²`, `₂`: 10² is not 102; letters as they are                  |
| `<nowiki>`, `<pre>`, `<syntaxhighlight>`     | what they enclose, to the letter                               |
| `-{zh-hans:A;zh-hant:B}-`                    | `A`                                                            |
| `&nbsp;`, U+00A0, U+202F                     | a space; ZWJ and ZWNJ stay                                     |

Why not mwparserfromhell: it builds a tree of nodes first, which costs ten times the time on articles of the English
Wikipedia (bench/wikitext.py --peer), and leaves holes such as "(; )" where templates were.
The time here is linear in the length of the page: brackets nested more than 100 deep (MediaWiki's own limit of
templates) go without being looked into.

The grammar is that of MediaWiki's preprocessor (https://www.mediawiki.org/wiki/Preprocessor_ABNF), read with more
patience for what is never closed.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.wikitext_templates import HOLE, lowered, raised, shown

MAX_DEPTH = 100

# What is to be kept to the letter is written in control characters while markup is looked for: XML has none of them.
_SPECIAL = "[]{}|'=*#:;<>&_- \t"
_CONTROLS = "".join(map(chr, (*range(3, 9), 11, 12, *range(14, 32))))
_PROTECT = str.maketrans(dict(zip(_SPECIAL, _CONTROLS)))
_RESTORE = str.maketrans(dict(zip(_CONTROLS, _SPECIAL)))
_PROTECT_BUT_ENTITIES = {key: value for key, value in _PROTECT.items() if key != ord("&")}
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
_PIPE = "|".translate(_PROTECT)

DROPPED_NAMESPACES = frozenset(
    "file image category media datei bild kategorie fichier catégorie archivo imagen categoría ficheiro imagem "
    "categoria immagine bestand afbeelding categorie plik grafika kategoria fil kategori tiedosto kuva luokka fájl "
    "kép kategória soubor obrázek súbor slika datoteka kategorija fișier imagine dosya resim tập_tin hình thể_loại "
    "berkas gambar файл изображение категория зображення категорія картинка слика датотека категорија "
    "αρχείο εικόνα κατηγορία պատկեր կատեգորիա קובץ תמונה קטגוריה ملف صورة تصنيف پرونده رده زمرہ "
    "ファイル 画像 カテゴリ 文件 檔案 档案 圖像 图像 分类 分類 파일 그림 분류 ไฟล์ ภาพ หมวดหมู่ "
    "চিত্র বিষয়শ্রেণী विषयशब्द चित्र श्रेणी वर्ग படிமம் பகுப்பு దస్త్రం బొమ్మ వర్గం പ്രമാണം ചിത്രം വർഗ്ഗം "
    "ಚಿತ್ರ ವರ್ಗ ચિત્ર શ્રેણી ਤਸਵੀਰ ਸ਼੍ਰੇਣੀ".replace("_", "\n")
    .replace(" ", "\t")
    .replace("\n", " ")
    .split("\t")
)
"""Names, in lower case, of pages of files and categories."""

_LANGUAGE = re.compile(
    r"(?:[a-z]{2,3}|simple|be-x-old|be-tarask|zh-[a-z-]{3,12}|map-bms|roa-[a-z]{3,4}|nds-nl|fiu-vro|bat-smg|cbk-zam)"
)
_MODIFIER_PREFIXES = frozenset(("wikt", "wp", "mw", "voy", "doi", "tag", "cia"))

_DROPPED_TAGS = (
    "ref references gallery timeline imagemap score hiero templatedata templatestyles graph mapframe maplink "
    "categorytree inputbox indicator includeonly table section charinsert ref-list dynamicpagelist rss html"
).split()
_KEPT_TAGS = "nowiki pre math chem ce syntaxhighlight source".split()
_EXTENSION = re.compile(
    rf"<!--|<({'|'.join((*_DROPPED_TAGS, *_KEPT_TAGS))})(?=[\s/>])([^<>]{{0,2000}}+)>", re.IGNORECASE
)
_SUP = re.compile(r"<(su[pb])\b[^<>]{0,200}+>([^<>\n]{0,60}+)</su[pb]\s{0,9}>", re.IGNORECASE)
_BLOCK_TAG = re.compile(
    r"</?(?:br|p|div|li|ul|ol|dl|dt|dd|tr|hr|blockquote|center|poem|h[1-6])\b[^<>]{0,2000}+>", re.IGNORECASE
)
_INLINE_TAG = re.compile(
    r"</?(?:span|small|big|sup|sub|b|i|u|s|em|strong|tt|code|kbd|samp|var|font|cite|q|abbr|dfn|del|ins|strike|bdi|bdo|"
    r"mark|noinclude|onlyinclude|includeonly|ref|references|gallery|nowiki|nobr|wbr|ruby|rb|rt|rp|rtc|time|data|td|th|"
    r"table|caption|thead|tbody|tfoot|colgroup|col|math|pre|source|syntaxhighlight|section|templatestyles|link|a|img|"
    r"timeline|chem|ce|langconvert|translate|tvar|languages|label|input|button)\b[^<>]{0,2000}+>",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    r"\[\[([^\[\]{}\n]*+)\]\]|\{\{([^{}\[\]]*+)\}\}"  # with nothing inside, as most are: faster as one token
    r"|\{\{+|\}\}+|\[\[|\]\]+|^[ \t:]*+\{\||^[ \t]*+\|\}(?!\})",
    re.MULTILINE,
)
_LINK_ITEM = re.compile(
    r"^[*#][*#:;]*[ \t]*[\"'\u201c\u00ab]*(?:\[(?:[a-z]{3,6}:)?//|https?://)[^\n]*", re.MULTILINE
)
_EXTERNAL = re.compile(
    r"\[(?:(?:https?|ftps?|sftp|ircs?|gopher|news|mailto|git|svn|telnet|geo|tel|urn|xmpp|magnet):|//)"
    r"[^\s\[\]<>\"]{0,2000}+[ \t]*+([^\]\n]{0,500}+)\]",
    re.IGNORECASE,
)
_QUOTES = re.compile(r"'{2,}")
_SWITCH = re.compile(r"__([^\s_<>{}\[\]|=]{2,40}(?:_[^\s_<>{}\[\]|=]{1,40}){0,5})__")
_VARIANT = re.compile(r"-\{([^{}\n]{0,2000}+)\}-")
_LEFT_OVER = re.compile(r"\{\{+|\}\}+|\[\[+|\]\]+")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
_SPACES = re.compile(r"[ \t\u00a0\u202f\u2007]{2,}|[\t\u00a0\u202f\u2007]")
_UNSEEN = ("\u00ad", "\ufeff", "\u200b")
"""Soft hyphen, byte order mark, zero-width space; not ZWJ and ZWNJ, which are spelling in Bengali and Persian."""

_GAP = " \t,;:،؛、，；–"
_ENDS = ",.;:!?%。、，।"
_HOLES = re.compile(f"{HOLE}(?:[{HOLE}{_GAP}]*{HOLE})?")


def plain_text(
    wikitext: str,
    *,
    title: str = "",
    namespaces: Iterable[str] = (),
    account: Account | None = None,
) -> str:
    """The text of a page, in lines that end with LF, without one at the end; "" where there is none.

    Args:
      title: of the page, for templates that show it.
      namespaces: names of those of files and categories in this wiki, in lower case, besides DROPPED_NAMESPACES.
      account: `changed["deep_markup"]` counts pages nested beyond MAX_DEPTH.
    """
    text = _ILLEGAL.sub("", wikitext) if _ILLEGAL.search(wikitext) else wikitext
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("&nbsp;", " ").replace("&#160;", " ")
    if "<" in text:
        text = _without_extensions(text)
    dropped = DROPPED_NAMESPACES.union(namespaces) if namespaces else DROPPED_NAMESPACES
    text, is_deep, open_table = _without_brackets(text, title, dropped)
    if is_deep and account is not None:
        account.changed["deep_markup"] += 1
    return _lines(_inline(text), open_table)


def _without_extensions(text: str) -> str:
    """Comments and tags whose content is not wikitext; what is kept of it is protected."""
    out, at = [], 0
    unclosed: set[str] = set()
    while (match := _EXTENSION.search(text, at)) is not None:
        out.append(text[at : match.start()])
        name = (match[1] or "").lower()
        at = match.end()
        if not name:
            end = text.find("-->", at)
            at = len(text) if end < 0 else end + 3
            # As in MediaWiki, a comment alone on its line takes the line with it.
            if text[match.start() - 1 : match.start()] in ("", "\n") and text[at : at + 1] == "\n":
                at += 1
            continue
        if name == "ref" and text[match.start() - 1 : match.start()] in (" ", "("):
            out.append(HOLE)
        if not match[2].rstrip().endswith("/") and name not in unclosed:
            closing = re.compile(rf"</{name}\s{{0,9}}>", re.IGNORECASE).search(text, at)
            if closing is None:
                unclosed.add(name)  # so that a thousand of them do not search to the end a thousand times
            else:
                if name in _KEPT_TAGS:
                    out.append(_kept(name, match[2], text[at : closing.start()]))
                elif name == "table":
                    out.append("\n")
                at = closing.end()
    out.append(text[at:])
    return "".join(out)


def _kept(name: str, attributes: str, content: str) -> str:
    if name == "math":
        mark = "$$" if "block" in attributes else "$"
        content = " ".join(content.split())
        return f"{mark}{content}{mark}".translate(_PROTECT) if content else HOLE
    if name in ("chem", "ce"):
        return content.strip().translate(_PROTECT)
    if name == "nowiki":
        return content.translate(_PROTECT_BUT_ENTITIES)
    code = content.strip("\n").translate(_PROTECT_BUT_ENTITIES if name == "pre" else _PROTECT)
    return f"\n{code}\n" if "\n" in code else code


def _without_brackets(text: str, title: str, dropped: frozenset[str]) -> tuple[str, bool, bool]:
    """Templates, links and tables by a stack of open brackets; (text, nested too deep?, is a table left open?)."""
    parts: list[str] = []
    stack: list[tuple[str, int]] = []  # (kind of bracket, place in parts)
    num_open = {"{": 0, "[": 0, "|": 0}
    too_deep, is_deep = 0, False
    at = 0

    def pop_until(kind: str) -> int:
        """The place of the innermost bracket of a kind; those inside it were never closed and are text."""
        while True:
            popped, place = stack.pop()
            num_open[popped] -= 1
            if popped == kind:
                return place

    for match in _TOKEN.finditer(text):
        if match.start() > at and not too_deep:
            parts.append(text[at : match.start()])
        at = match.end()
        if match.lastindex:
            if not too_deep:
                parts.append(_link(match[1], dropped) if match.lastindex == 1 else shown(match[2], title))
            continue
        token = match[0]
        length = len(token)
        kind = token[-1]
        if token[0] in " \t:" or kind == "|" or token[0] == "|":
            token = token.lstrip(" \t:")
        if kind == "{" or kind == "[" or kind == "|":
            if kind == "{" and length % 2:
                parts.append("{")
            for _ in range(length // 2 if kind == "{" else 1):
                if len(stack) >= MAX_DEPTH:
                    is_deep, too_deep = True, too_deep + 1
                    continue
                stack.append((kind, len(parts)))
                num_open[kind] += 1
        elif token == "|}":
            if too_deep:
                too_deep -= 1
            elif num_open["|"] and stack[-1][0] != "{":
                del parts[pop_until("|") :]
                parts.append("\n")
        elif kind == "}":
            while length >= 2:
                if too_deep:
                    too_deep -= 1
                elif num_open["{"]:
                    place = pop_until("{")
                    content = "".join(parts[place:])
                    del parts[place:]
                    parts.append(shown(content, title))
                else:
                    break
                length -= 2
            if length and not too_deep:
                parts.append("}" * length)
        else:
            while length >= 2:
                if too_deep:
                    too_deep -= 1
                elif stack and stack[-1][0] == "[":
                    place = pop_until("[")
                    content = "".join(parts[place:])
                    del parts[place:]
                    if length % 2 and content.count("[") > content.count("]"):
                        content, length = content + "]", length - 1  # [[File:x|of [http://y z]]]
                    parts.append(_link(content, dropped))
                else:
                    break
                length -= 2
            if length and not too_deep:
                parts.append("]" * length)
    if not too_deep:
        parts.append(text[at:])
    return "".join(parts), is_deep, num_open["|"] > 0


def _link(content: str, dropped: frozenset[str]) -> str:
    """What [[content]] shows."""
    target, pipe, text = content.partition("|")
    colon = target.find(":")
    if colon > 0:
        space = target[:colon].strip().replace("_", " ")
        if space.lower() in dropped:
            return ""
        if not pipe and "\n" not in target and _LANGUAGE.fullmatch(space) and space not in _MODIFIER_PREFIXES:
            return ""
    if "\n" in target:
        return content
    if pipe:
        return text.replace("|", _PIPE) if text.strip() else target.strip().lstrip(":")
    return target.strip().lstrip(":#").replace("_", " ") if target[:1] in ":#" else target


def _inline(text: str) -> str:
    """Everything that stands within a line."""
    if "<" in text:
        text = _SUP.sub(lambda m: (raised if m[1].lower() == "sup" else lowered)(m[2].strip()) or m[2], text)
        text = _INLINE_TAG.sub("", _BLOCK_TAG.sub("\n", text))
    if "//" in text:
        text = _LINK_ITEM.sub("", text)
        text = _EXTERNAL.sub(lambda m: m[1].strip() or HOLE, text)
    if "''" in text:
        text = _QUOTES.sub(_apostrophes, text)
    if "__" in text:
        text = _SWITCH.sub(lambda m: "" if m[0].upper() == m[0] else m[0], text)
    if "-{" in text:
        text = _VARIANT.sub(_variant, text)
    if HOLE in text:
        text = _mended(text)
    return _LEFT_OVER.sub("", text)


def _mended(text: str) -> str:
    """Repairs what is wrong around something that was taken out: "()", "( ; born", ", )", ", ,", " ."."""
    pieces = _HOLES.split(text)
    out = [pieces[0]]
    for right in pieces[1:]:
        left = out[-1]
        before, after = left.rstrip(_GAP), right.lstrip(_GAP)
        opened, closed = before.endswith(("(", "（")), after.startswith((")", "）"))
        if opened and closed:
            left, right = before[:-1], after[1:]
            left = left.rstrip(" ") if right[:1] in _ENDS else left
        elif opened or closed:
            left, right = before, after
        else:
            before, after = left.rstrip(" "), right.lstrip(" ")
            if before.endswith((",", ";", "،", "、", "，")) and after.startswith(
                (",", ";", ".", "،", "、", "，", "。")
            ):
                left, right = before[:-1], after
            elif after and after[0] in _ENDS:
                left, right = before, after
        out[-1] = left
        out.append(right)
    return HOLE.join(out)


def _apostrophes(match: re.Match[str]) -> str:
    """Italic, bold and both are 2, 3 and 5; of others, those too many are apostrophes."""
    count = len(match[0])
    return "'" * (0 if count in (2, 3) else 1 if count == 4 else count - 5)


def _variant(match: re.Match[str]) -> str:
    """The first of the variants of a Chinese or Serbian word; nothing of what only sets rules."""
    flags, pipe, content = match[1].rpartition("|")
    if pipe and flags.strip() in ("H", "T", "-", "D"):
        return ""
    first = content.split(";")[0]
    language, colon, word = first.partition(":")
    return word.strip() if colon and re.fullmatch(r"[a-z-]{2,12}", language.strip()) else content


def _lines(text: str, open_table: bool) -> str:
    """Headings, lists and paragraphs, without those that hold nothing."""
    out: list[tuple[int, str]] = []  # (level of a heading or 0, line)
    for raw in text.split("\n"):
        line = raw.strip(" \t\u00a0")
        if not line:
            if out and out[-1][1]:
                out.append((0, ""))
            continue
        first = line[0]
        level = 0
        if first == "=" and line[-1] == "=" and len(line) > 2:
            line, level = _heading(line)
        elif first in "*#:;":
            line = _item(line)
        elif first == "|" or (first == "!" and open_table) or line.startswith(("{|", "----")):
            continue
        if HOLE in line:
            line = line.replace(HOLE, "").strip()
            if not any(map(str.isalnum, line)):
                continue
        if line:
            out.append((level, line))
    text = "\n".join(_sections(out))
    return _characters(text)


def _item(line: str) -> str:
    text = line.lstrip("*#:; \t")
    marks = line[: len(line) - len(text)].rstrip()
    text = text.lstrip(HOLE + _GAP + ".") if text.startswith(HOLE) else text
    if not any(map(str.isalnum, text)) and (not text or not _ILLEGAL.search(text)):
        return ""
    return f"- {text}" if marks[-1] in "*#" else text


def _heading(line: str) -> tuple[str, int]:
    left = len(line) - len(line.lstrip("="))
    right = len(line) - len(line.rstrip("="))
    level = min(left, right, 6, (len(line) - 1) // 2)
    return line[level:-level].strip(" \t="), level


def _sections(lines: list[tuple[int, str]]) -> list[str]:
    """The lines with blank ones around headings, without headings that have nothing below them."""
    out: list[str] = []  # from the end
    has_content, below = False, 7  # whether text follows; the level of the next heading that was kept
    for level, line in reversed(lines):
        if not level:
            has_content = has_content or bool(line)
            if line or (out and out[-1]):
                out.append(line)
        else:
            if has_content or below > level and below < 7:
                if out and out[-1]:
                    out.append("")
                out += [line, ""]
                below = level
            has_content = False
    while out and not out[-1]:
        out.pop()
    out.reverse()
    while out and not out[-1]:
        out.pop()
    return out


def _characters(text: str) -> str:
    """Entities and protected characters as themselves; no-break spaces as spaces, runs of them as one."""
    if "&" in text:
        text = _ENTITY.sub(lambda m: html.unescape(m[0]), text)
    for character in _UNSEEN:
        if character in text:  # five times faster than str.translate
            text = text.replace(character, "")
    text = _SPACES.sub(" ", text)
    return text.translate(_RESTORE) if _ILLEGAL.search(text) else text
