"""Wikitext to text, to the letter: every construct by an example written out by hand, and pages made to hurt."""

import time

import pytest

from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.wikitext import plain_text

ARTICLE = """\
{{Short description|City in Testland}}
{{Infobox settlement
| name = Testville
| coordinates = {{Coord|1|2}}
| population = {{formatnum:12345}} <ref>{{cite web|url=http://a.b/c|title=A|x={{{y|}}}}}</ref>
}}
[[File:Testville [old].jpg|thumb|The [[town hall]], seen from [http://x.org the east]]]
'''Testville''' ({{IPAc-en|t|ɛ|s|t}}; {{lang-la|Villa ''probata''}}) is a [[city]] in [[Testland (country)|Testland]],
{{convert|10|km|mi|abbr=on}} from the [[coast]]s.<ref name="a">A ref with [[link]].</ref><ref name="b" /> It had
12,345&nbsp;inhabitants {{as of|2010|lc=y}}.{{citation needed|date=May 2011}}

== History ==
{{main|History of Testville}}
Founded in 10<sup>2</sup> BC.<!-- really? --> Its ''motto'' is "H<sub>2</sub>O".

=== Middle Ages ===
* First ''item''
** Nested item, {{nowrap|kept together}}
# Numbered
: Indented.
; Term
: Meaning

=== Nothing here ===
{{empty section}}

== Climate ==
{| class="wikitable"
! Month !! Rain
|-
| May || {| class="inner"
| 5
|}
|}

== Formula ==
The area is <math>A = \\pi r^{2}</math>, and not <nowiki>'''A''' [[B]]</nowiki>.

== See also ==
* [[Testtown]]

== References ==
{{Reflist|30em}}

== External links ==
* [http://www.testville.example Official site]
* {{Official website|http://x.example}}

{{Testland cities}}
[[Category:Cities]]
[[de:Testdorf]]
__NOTOC__
"""

TEXT = """\
Testville (Villa probata) is a city in Testland,
10 km from the coasts. It had
12,345 inhabitants as of 2010.

History

Founded in 10² BC. Its motto is "H₂O".

Middle Ages

- First item
- Nested item, kept together
- Numbered
Indented.
Term
Meaning

Formula

The area is $A = \\pi r^{2}$, and not '''A''' [[B]].

See also

- Testtown"""


def test_an_article_becomes_the_text_that_a_reader_sees():
    assert plain_text(ARTICLE) == TEXT


def test_bengali_with_its_joiners_stays_as_it_is_spelt():
    wikitext = (
        "{{তথ্যছক শহর|নাম=ঢাকা}}\n"
        "'''ঢাকা''' ({{lang-en|Dhaka}}) [[বাংলাদেশ]]ের [[রাজধানী শহর|রাজধানী]]।<ref>সূত্র</ref> র‍্যাব ও ক্‌ষ।\n"
        "== ইতিহাস ==\n"
        "* [[চিত্র:ছবি.jpg|thumb|ক্যাপশন]]মুঘল আমল&nbsp;শুরু {{রূপান্তর|৫|km}} দূরে\n"
        "== তথ্যসূত্র ==\n{{সূত্র তালিকা}}\n[[বিষয়শ্রেণী:শহর]]\n"
    )
    assert plain_text(wikitext) == ("ঢাকা (Dhaka) বাংলাদেশের রাজধানী। র‍্যাব ও ক্‌ষ।\n\nইতিহাস\n\n- মুঘল আমল শুরু ৫ km দূরে")


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        # links
        ("[[a]]s, [[b|c]], [[d|]], [[:Category:E]], [[#F]]", "as, c, d, Category:E, F"),
        ("[[a|b|c]]", "b|c"),
        ("[[wikt:word|word]] [[fr:mot]]x", "word x"),
        ("[http://a.b text here] [http://a.b] [//c.d e] http://f.g", "text here e http://f.g"),
        ("an [array] of [[unclosed", "an [array] of unclosed"),
        ("[[File:a.jpg|thumb|see [[b]] and [[c|d]]]]x", "x"),
        ("[[File:a.jpg|thumb|see [http://b c]]]x", "x"),
        ("[[Datei:a.jpg|mini]][[Fichier:b.jpg]][[Archivo:c.png|x]][[ファイル:d.jpg]]x", "x"),
        ("[[two\nlines]]", "two\nlines"),
        # quotes
        ("''a'' '''b''' '''''c''''' d''''e'''' f's", "a b c d'e' f's"),
        # templates
        ("{{a}}x{{b|c={{d|{{e}}}}}}y", "xy"),
        ("{{unclosed|a=b\ntext", "unclosed|a=b\ntext"),
        ("x}} y", "x y"),
        ("{{{1|default}}} x", "{} x"),
        ("{{lang|fr|mot}} {{lang-de|Wort}} {{transl|ja|kotoba}}", "mot Wort kotoba"),
        ("{{convert|5|ft|6|in|cm}}, {{convert|3|-|4|km2|sqmi}}, {{cvt|20|C}}", "5 ft 6 in, 3–4 km², 20 °C"),
        ("{{frac|1|2}} {{frac|3|1|4}} {{val|5.0|e=3|u=kg}} {{e|-6}}", "1/2 3 1/4 5.0×10³ kg ×10⁻⁶"),
        ("{{ill|Nom|fr}}, {{仮リンク|名前|en|Name}}, {{нп5|Статья|текст|en|Page}}", "Nom, 名前, текст"),
        ("a{{snd}}b{{'}}c {{zwnj}}", "a – b'c \u200c"),
        ("{{chem|H|2|O}}, {{chem|SO|4|2-}}", "H₂O, SO₄²⁻"),
        ("{{quote|To be.|Hamlet}} {{ubl|a|b}}", "To be.\n\n- a\n- b"),
        ("{{circa|1900}} {{US$|10}} {{nihongo|Tokyo|東京|Tōkyō}}", "c. 1900 US$10 Tokyo (東京, Tōkyō)"),
        ("{{unité|10|km}}, {{s-|XIX}}, {{date|3|mai|1900}}", "10 km, XIXe siècle, 3 mai 1900"),
        ("{{small|1=a=b}} {{lc:ABC}} {{formatnum:1000}} {{#if:x|y}}z", "a=b abc 1000 z"),
        ("{{PAGENAME}} is here", "Title is here"),
        # holes
        ("A ({{IPA|x}}) b", "A b"),
        ("A ({{IPA|x}}; born 1900) b", "A (born 1900) b"),
        ("A (1900, {{IPA|x}}) b", "A (1900) b"),
        ("A, {{x}}, b {{x}}. C {{x}} d", "A, b. C d"),
        ("f() stays, and so does ( a )", "f() stays, and so does ( a )"),
        ("東京（{{IPA|x}}）は", "東京は"),
        ("text <ref>r</ref>, more (<ref>r</ref>)", "text, more"),
        # tables
        ("a\n{|\n| b\n{|\n| c\n|}\n|}\nd", "a\n\nd"),
        ("a\n{|\n| b\n! c\nd", "a\n\nd"),
        (":{| class=x\n| b\n|}\nc", "c"),
        ("{{foo\n|a\n|}}b", "b"),
        ("<table><tr><td>x</td></tr></table>y", "y"),
        # tags
        ("a<br>b<br />c", "a\nb\nc"),
        ("<div style='a'>b</div><span>c</span><u>d</u>", "b\ncd"),
        ("19<sup>th</sup> 2<sup>-3</sup> x<sub>i</sub>", "19th 2⁻³ xi"),
        ("<ref>a</ref>b<ref name=c/>d<REF>e</REF>f<ref>g", "bdfg"),
        ("<gallery>\nFile:a.jpg|b\n</gallery>c", "c"),
        ("<pre>\n  a [[b]]\n  * c\n</pre>d", "  a [[b]]\n  * c\nd"),
        ("<syntaxhighlight lang=c>if (a[1] && {{b}}) &amp;</syntaxhighlight>", "if (a[1] && {{b}}) &amp;"),
        ("<math display=block>a_{1}\n|b|</math>", "$$a_{1} |b|$$"),
        ("{{small|<math>a|b</math>}}", "$a|b$"),
        ("<poem>a\nb</poem>", "a\nb"),
        ("1 < 2 and 3 > 2, a <b c> d", "1 < 2 and 3 > 2, a d"),
        ("a<!-- b -->c<!-- open", "ac"),
        ("* a\n<!-- b -->\n* c", "- a\n- c"),
        ("<includeonly>a</includeonly><noinclude>b</noinclude>", "b"),
        # lines
        ("----\na\n\n\n\nb", "a\n\nb"),
        ("* {{x}}\n* - \n*a", "- a"),
        ("* http://a.b c\n* [http://a.b c], d\n* d", "- d"),
        ("== A ==\n=== B ===\n== C ==\nd", "C\n\nd"),
        ("== A ==\n=== B ===\nc\n== D ==", "A\n\nB\n\nc"),
        ("==A==\nb", "A\n\nb"),
        ("= =\n==\na", "==\na"),
        # characters
        ("&lt;b&gt; &amp;lt; &eacute;&#8212;&#x41; &bogus; AT&T", "<b> &lt; é—A &bogus; AT&T"),
        ("a\u00a0b&nbsp;c\u202fd  e\u00adf\ufeff", "a b c d ef"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("__NOTOC__ __INDEX__a __init__", "a __init__"),
        ("-{zh-hans:计算机; zh-hant:電腦;}-和-{X}-", "计算机和X"),
        ("\x00\x01a\x02{{x}}b\x1f", "ab"),
        ("", ""),
        ("{{x}}\n[[Category:y]]\n== See ==\n", ""),
    ],
)  # fmt: skip
def test_each_construct(wikitext, text):
    assert plain_text(wikitext, title="Title") == text


def test_names_of_namespaces_come_from_the_dump_too():
    assert plain_text("[[Lêer:a.jpg|b]]c", namespaces={"lêer"}) == "c"
    assert plain_text("[[Lêer:a.jpg|b]]c") == "bc"


def test_ten_thousand_nested_templates_go_and_are_counted():
    account = Account()
    assert plain_text("a" + "{{x|" * 10_000 + "}}" * 10_000 + "b", account=account) == "ab"
    assert account.changed == {"deep_markup": 1}


@pytest.mark.parametrize(
    "page",
    [
        "{{" * 500_000,
        "}}" * 500_000,
        "[[" * 500_000,
        "[[a|" * 250_000 + "]]" * 250_000,
        "{{lang|en|" * 50_000 + "x" * 500_000 + "}}" * 50_000,
        "{{a|[[" * 150_000 + "}}" * 150_000,
        "<ref>" * 200_000,
        "<ref name=" * 100_000,
        "<math>" * 150_000,
        "<!--" * 250_000,
        "<sup>" * 200_000,
        "{|\n" * 300_000,
        "\n|}" * 300_000,
        "'" * 1_000_000,
        "[http://a " * 100_000,
        "* [http://a " * 80_000,
        "=" * 1_000_000,
        "= " * 500_000 + "=",
        "(" * 1_000_000,
        " " * 1_000_000 + "{{x}}",
        ("(" + " " * 9) * 90_000 + "{{x}}",
        "({{x}}" * 150_000,
        "&" * 1_000_000,
        "&a" * 500_000,
        "__" * 500_000,
        "__a" * 300_000,
        "-{" * 500_000,
        "* " * 500_000,
        "*" * 1_000_000,
        ":" * 500_000 + "{|",
        "\n" * 1_000_000,
        "a\n\n" * 300_000,
        "== a ==\n" * 100_000,
        "#redirect " * 100_000,
    ],
    ids=lambda page: repr(page[:12]),
)  # fmt: skip
def test_a_megabyte_of_anything_takes_a_moment(page):
    start = time.process_time()
    plain_text(page)
    assert time.process_time() - start < 2.5
