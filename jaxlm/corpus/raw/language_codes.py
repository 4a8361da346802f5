"""Codes of languages: one for each language, however a source writes it. Imports nothing.

Common Crawl states `eng` (ISO 639-3), a data set `en-US` (BCP 47), an old library `ger` (ISO 639-2/B). Filters and
reports have `en` and `de`, as identifiers of languages say.

Source: ISO 639-2, the languages that also have a code of two letters: loc.gov/standards/iso639-2/php/code_list.php.
"""

from __future__ import annotations

_TABLE = (
    "aa:aar ab:abk ae:ave af:afr ak:aka am:amh an:arg ar:ara as:asm av:ava ay:aym az:aze "  # codespell:ignore
    "ba:bak be:bel bg:bul bh:bih bi:bis bm:bam bn:ben bo:bod/tib br:bre bs:bos ca:cat "  # codespell:ignore
    "ce:che ch:cha co:cos cr:cre cs:ces/cze cu:chu cv:chv cy:cym/wel da:dan de:deu/ger "  # codespell:ignore
    "dv:div dz:dzo ee:ewe el:ell/gre en:eng eo:epo es:spa et:est eu:eus/baq fa:fas/per "  # codespell:ignore
    "ff:ful fi:fin fj:fij fo:fao fr:fra/fre fy:fry ga:gle gd:gla gl:glg gn:grn gu:guj "  # codespell:ignore
    "gv:glv ha:hau he:heb hi:hin ho:hmo hr:hrv ht:hat hu:hun hy:hye/arm hz:her ia:ina "  # codespell:ignore
    "id:ind ie:ile ig:ibo ii:iii ik:ipk io:ido is:isl/ice it:ita iu:iku ja:jpn jv:jav "  # codespell:ignore
    "ka:kat/geo kg:kon ki:kik kj:kua kk:kaz kl:kal km:khm kn:kan ko:kor kr:kau ks:kas "  # codespell:ignore
    "ku:kur kv:kom kw:cor ky:kir la:lat lb:ltz lg:lug li:lim ln:lin lo:lao lt:lit lu:lub "  # codespell:ignore
    "lv:lav mg:mlg mh:mah mi:mri/mao mk:mkd/mac ml:mal mn:mon mr:mar ms:msa/may mt:mlt "  # codespell:ignore
    "my:mya/bur na:nau nb:nob nd:nde ne:nep ng:ndo nl:nld/dut nn:nno no:nor nr:nbl nv:nav "  # codespell:ignore
    "ny:nya oc:oci oj:oji om:orm or:ori os:oss pa:pan pi:pli pl:pol ps:pus pt:por qu:que "  # codespell:ignore
    "rm:roh rn:run ro:ron/rum ru:rus rw:kin sa:san sc:srd sd:snd se:sme sg:sag si:sin "  # codespell:ignore
    "sk:slk/slo sl:slv sm:smo sn:sna so:som sq:sqi/alb sr:srp ss:ssw st:sot su:sun sv:swe "  # codespell:ignore
    "sw:swa ta:tam te:tel tg:tgk th:tha ti:tir tk:tuk tl:tgl tn:tsn to:ton tr:tur ts:tso "  # codespell:ignore
    "tt:tat tw:twi ty:tah ug:uig uk:ukr ur:urd uz:uzb ve:ven vi:vie vo:vol wa:wln wo:wol "  # codespell:ignore
    "xh:xho yi:yid yo:yor za:zha zh:zho/chi zu:zul "  # codespell:ignore
)
_SHORT = {
    long: short
    for short, _, longs in (entry.partition(":") for entry in _TABLE.split())
    for long in longs.split("/")
}


def short_code(stated: str) -> str:
    """`eng`, `en-US`, `EN_us`, `__label__eng_Latn` -> `en`; a code of a language that has none of two letters stays."""
    code = stated.strip().removeprefix("__label__").replace("_", "-").partition("-")[0].lower()
    return _SHORT.get(code, code)
