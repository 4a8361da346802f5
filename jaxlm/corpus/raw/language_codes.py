"""ISO 639: the two-letter code of a language that has one, whatever a source calls it."""

from __future__ import annotations

_PAIRS = """
aar aa abk ab afr af aka ak sqi sq alb sq amh am ara ar arg an hye hy arm hy asm as ava av ave ae aym ay aze az bak ba
bam bm eus eu baq eu bel be ben bn bih bh bis bi bos bs bre br bul bg mya my bur my cat ca cha ch che ce zho zh chi zh
cmn zh chu cu chv cv cor kw cos co cre cr ces cs cze cs dan da div dv nld nl dut nl dzo dz eng en epo eo est et ekk et
ewe ee fao fo fij fj fin fi fra fr fre fr fry fy ful ff kat ka geo ka deu de ger de gla gd gle ga glg gl glv gv ell el
gre el grn gn guj gu hat ht hau ha heb he iw he her hz hin hi hmo ho hrv hr hun hu ibo ig isl is ice is ido io iii ii
iku iu ile ie ina ia ind id in id ipk ik ita it jav jv jw jv jpn ja kal kl kan kn kas ks kau kr kaz kk khm km kik ki
kin rw kir ky kom kv kon kg kor ko kua kj kur ku kmr ku lao lo lat la lav lv lvs lv lim li lin ln lit lt ltz lb lub lu
lug lg mkd mk mac mk mah mh mal ml mri mi mao mi mar mr msa ms may ms zsm ms mlg mg plt mg mlt mt mon mn khk mn nau na
nav nv nbl nr nde nd ndo ng nep ne npi ne nno nn nob nb nor no nya ny oci oc oji oj ori or ory or orm om gaz om oss os
pan pa fas fa per fa pes fa pli pi pol pl por pt pus ps pbt ps que qu roh rm ron ro rum ro mol ro mo ro run rn rus ru
sag sg san sa sin si slk sk slo sk slv sl sme se smo sm sna sn snd sd som so sot st spa es srd sc srp sr scr hr scc sr
ssw ss sun su swa sw swh sw swe sv tah ty tam ta tat tt tel te tgk tg tgl tl fil tl tha th bod bo tib bo tir ti ton to
tsn tn tso ts tuk tk tur tr twi tw uig ug ukr uk urd ur uzb uz uzn uz ven ve vie vi vol vo cym cy wel cy wln wa wol wo
xho xh yid yi ydd yi ji yi yor yo zha za zul zu arb ar azj az als sq hbs sh
""".split()
_SHORT = dict(zip(_PAIRS[::2], _PAIRS[1::2], strict=True))
"""ISO 639-3 and 639-2 (both kinds), withdrawn codes, and the largest member of some macrolanguages -> ISO 639-1."""


def short_code(code: str) -> str:
    """`eng`, `eng_Latn`, `en-GB` -> `en`; a language without two letters keeps its three."""
    code = code.strip().replace("_", "-").partition("-")[0].lower()
    return _SHORT.get(code, code)
