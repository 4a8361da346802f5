"""Pages of a wiki that are no articles: redirects and lists of meanings, in every language."""

from __future__ import annotations

import re

_REDIRECT = re.compile(
    r"\s*#[^\s\[\]{}|#*:=]{2,30}(?: [^\s\[\]{}|#*:=]{1,30}){0,2}\s{0,3}:?\s{0,3}\[\[[^\[\]\n]{1,400}\]\]"
)
_NAME = re.compile(r"\{\{\s{0,9}([^|{}\[\]<>\n]{1,60})[|}\n<]")
_TEMPLATES = frozenset(
    name.strip()
    for name in (
        # English, and what most wikis take over from it
        "disambiguation, disambig, disambiguation page, disambiguation cleanup, disambig-cleanup, disambig cleanup, "
        "disambigua, disamb, disambigs, dab, hndis, hndis-cleanup, geodis, numberdis, letter disambig, mil-unit-dis, "
        "mathdab, schooldis, roaddis, callsigndis, airport disambig, hospitaldis, "
        # German, French, Spanish, Italian, Portuguese, Catalan, Romanian
        "begriffsklärung, bkl, homonymie, internationalisation, patronymie, toponymie, paronymie, desambiguación, "
        "desambiguacion, desambigua, desambiguação, desambiguacao, desambig, desambiguació, dezambiguizare, "
        # Dutch, Swedish, Norwegian, Danish, Finnish, Estonian
        "dp, dpintro, doorverwijspagina, förgrening, gren, peker, pekere, flertydig, täsmennyssivu, täpsustuslehekülg, "
        # Polish, Czech, Slovak, Hungarian, Slovenian, Croatian, Lithuanian, Latvian
        "ujednoznacznienie, rozcestník, rozlišovacia stránka, egyért, egyértelműsítő, razločitev, razdvojba, "
        "nuorodinis, nozīmju atdalīšana, "
        # Russian, Ukrainian, Belarusian, Bulgarian, Serbian
        "неоднозначность, неоднозначність, багатозначність, неадназначнасць, пояснение, вишезначна одредница, "
        "вишезначна, "
        # Japanese, Chinese, Korean, Vietnamese, Thai, Indonesian
        "aimai, 曖昧さ回避, 消歧义, 消歧義, 消歧義頁, 消歧义页, 동음이의, trang định hướng, định hướng, แก้กำกวม, "
        "แก้ความกำกวม, disambiguasi, "
        # Arabic, Persian, Hebrew, Turkish, Urdu
        "توضيح, صفحة توضيح, ابهام‌زدایی, ابهام زدایی, פירושונים, anlam ayrımı, anlamayrımı, ضد ابہام, "
        # Bengali, Hindi, Marathi, Tamil, Telugu, Malayalam
        "দ্ব্যর্থতা নিরসন, দ্ব্যর্থতা, দ্ব্যর্থতা নিরসন পাতা, बहुविकल्पी शब्द, बहुविकल्पी, नि:संदिग्धीकरण, "
        "பக்கவழி நெறிப்படுத்தல், అయోమయ నివృత్తి, വിവക്ഷകൾ, "
        # Greek, Esperanto, Basque, Irish
        "αποσαφήνιση, apartigilo, argipen, idirdhealú"
    ).split(",")
)
_TITLE = re.compile(
    r"[(（](?:disambiguation|begriffsklärung|homonymie|desambiguación|desambiguació|desambiguação|disambigua|"
    r"dezambiguizare|doorverwijspagina|olika betydelser|andre betydninger|flertydig|täsmennyssivu|ujednoznacznienie|"
    r"rozcestník|rozlišovacia stránka|egyértelműsítő lap|значения|значення|неоднозначность|вишезначна одредница|"
    r"пояснение|曖昧さ回避|消歧义|消歧義|동음이의|định hướng|แก้ความกำกวม|disambiguasi|توضيح|ابهام‌زدایی|פירושונים|"
    r"anlam ayrımı|ضد ابہام|দ্ব্যর্থতা নিরসন|बहुविकल्पी|बहुविकल्पी शब्द|αποσαφήνιση|apartigilo|argipena)[)）]$",
    re.IGNORECASE,
)


def is_redirect(wikitext: str) -> bool:
    """Whether the page starts with `#REDIRECT [[...]]`, in any language's word (of up to three) for it."""
    return _REDIRECT.match(wikitext) is not None


def is_disambiguation(title: str, wikitext: str) -> bool:
    """Whether a page only lists meanings of its title, by the title, a template or a magic word."""
    if _TITLE.search(title) is not None or "__DISAMBIG__" in wikitext:
        return True
    for written in _NAME.findall(wikitext):
        name = written.strip().replace("_", " ").lower()
        if name in _TEMPLATES or name.endswith((" disambiguation", " disambiguation cleanup")):
            return True
    return False
