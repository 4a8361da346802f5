"""Personal data, by hand; e-mail and IP addresses as datatrove finds them."""

import ipaddress
import re
import time
from collections import Counter

import pytest
from datatrove.data import Document
from datatrove.pipeline.formatters.pii import PIIFormatter
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.personal_data import PersonalDataStep, scrub


def scrubbed(text):
    counts = Counter()
    return scrub(text, counts), dict(counts)


@pytest.mark.parametrize(
    ("text", "left", "counts"),
    [
        ("Write to jane.doe+x@mail.bd, please.", "Write to {email}, please.", {"email": 1}),
        ("<a@b.co> and (c@d.org)!", "<{email}> and ({email})!", {"email": 2}),
        ("যোগাযোগ: kobi@kobita.com।", "যোগাযোগ: {email}।", {"email": 1}),
        ("from 8.8.8.8:53 today", "from {ip}:53 today", {"ip": 1}),
        ("Call +49 69 7912 39550 now", "Call {phone} now", {"phone": 1}),
        ("Call +8801712345678.", "Call {phone}.", {"phone": 1}),
        ("Tel: (206) 543-1695, 206-543-9196", "Tel: {phone}, {phone}", {"phone": 2}),
        ("+1.714.928.5476", "{phone}", {"phone": 1}),
    ],
)
def test_personal_data_is_replaced(text, left, counts):
    result, counted = scrubbed(text)
    pattern = re.escape(left)
    for kind, shape in {
        "email": r"(email@example\.com|firstname\.lastname@example\.org)",
        "ip": r"\d+\.\d+\.\d+\.\d+",
        "phone": r"\+1 202 555 01\d\d",
    }.items():
        pattern = pattern.replace(re.escape(f"{{{kind}}}"), shape)
    assert re.fullmatch(pattern, result), result
    assert counted == counts


@pytest.mark.parametrize(
    "text",
    [
        "", "@", "a@b", "@user said @@ this", "me @ home.com",
        "192.168.0.1 and 127.0.0.1 and 10.1.2.3", "version 1.2.3.4.5", "01.02.2003", "999.1.1.1", "1.2.3",
        "+3.140000; -3.140000", "+000000120", "a+1234567890", "1 + 234 567 890 12", "2001-2002-2003", "555-1234",
        "ISBN 978-3-16-148410-0", "1999-12-31 23:59:59", "12345678901234567890", "pi is 3.14159265358979",
        "100-200-3000", "$1,234,567,890", "f(+12) 34 56", "+12 345 67", "+1 22 333 4444 55555 6666 77",
    ],
)  # fmt: skip
def test_what_is_not_personal_is_left(text):
    assert scrubbed(text) == (text, {})


ADDRESSES = st.lists(
    st.sampled_from(
        ["a", "Z9", ".", "-", "@", "@b.co", "x.y@z.org", "[1.2.3.4]", " ", "\n", "!", "=", "বা", "@@", "/"]
    ),
    max_size=40,
).map("".join)


@given(ADDRESSES)
@settings(max_examples=500, deadline=None)
def test_emails_are_those_that_datatrove_finds(text):
    theirs = PIIFormatter(remove_ips=False, email_replacement="<mail>").format(text)
    replaced = scrubbed(text)[0]
    for name in ("email@example.com", "firstname.lastname@example.org"):
        replaced = replaced.replace(name, "<mail>")
    assert re.sub(r"\[\d+(\.\d+){3}\]", "[]", replaced) == re.sub(r"\[\d+(\.\d+){3}\]", "[]", theirs)


@given(st.ip_addresses(v=4))
def test_ip_addresses_are_those_that_datatrove_finds(address):
    text = f"from {address} on"
    theirs = PIIFormatter(remove_emails=False).format(text)
    assert (scrubbed(text)[0] == text) == (theirs == text) == (not ipaddress.ip_address(address).is_global)


def test_a_replacement_depends_on_the_address_alone():
    one, two = "mail a@b.org and 8.8.8.8", "mail c@d.org then a@b.org, 1.1.1.1, 8.8.8.8"
    first = [scrubbed(one), scrubbed(two)]
    assert [scrubbed(two), scrubbed(one)] == first[::-1]
    assert scrubbed("a@b.org")[0] == scrubbed("A@B.ORG")[0] == first[0][0].split()[1]
    assert len({scrubbed(f"u{n}@b.org")[0] for n in range(20)}) == 2


def test_the_step_counts_by_kind_and_document():
    account = Account()
    documents = [Document("a@b.org c@d.org 8.8.8.8", "1"), Document("nothing", "2")]
    left = list(PersonalDataStep(account)(iter(documents)))
    assert [document.id for document in left] == ["1", "2"]
    assert left[1].text == "nothing"
    assert account.changed == {"personal_data_documents": 1, "email": 2, "ip": 1}


@pytest.mark.parametrize(
    "piece", ["a/", "a/@", "@", "a.b@", "1.", "1.1.1.", "+1 22 ", "206-543-", "+", "x@y.z", "(206) "]
)
def test_no_text_takes_long(piece):
    text = piece * (200_000 // len(piece))
    begin = time.process_time()
    scrubbed(text)
    scrubbed("x@" + text)
    scrubbed(text + "@x.org")
    assert time.process_time() - begin < 2.0
