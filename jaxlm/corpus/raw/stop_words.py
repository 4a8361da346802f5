"""Common words of each language, for Gopher's rule that a text has two of them.

English has Gopher's eight (Rae et al. 2021, arXiv:2112.11446, appendix A.1.1); the other lists are written here in
their manner: articles, conjunctions, prepositions and forms of "to be", in lower case. A language without a list goes
without the rule.
"""

from __future__ import annotations

STOP_WORDS: dict[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "ar": "في من على إلى عن أن هذا هذه التي الذي كان ما لا مع",
        "bn": "এবং ও এই না করে থেকে তার যে আর হয় হয় জন্য এক কিন্তু তিনি একটি আমি সে কি তা করতে ছিল",
        "cs": "a v na se je že to s z do o jsem jako pro při by nebo k ve po za od být musí",
        "da": "og i at det en den til er som på de med af for",  # codespell:ignore
        "de": "der die das und in zu den mit von ist nicht ein eine auf für sich",  # codespell:ignore
        "el": "και το να του η της με για που από την τα είναι στο",
        "en": "the be to of and that have with",
        "es": "de la que el en y a los se del las un por con una para no es",
        "fa": "و در به از که این را با است آن برای یک",
        "fi": "ja on ei se että oli hän joka mutta kun niin ovat myös ole olla tämä tai",
        "fr": "de la le et les des en un du une que est pour dans qui il",
        "he": "של את על לא זה הוא עם כי גם או היא אני אין יש כל אינו להיות",
        "hi": "के का में है और से को की पर ने यह कि हैं नहीं था एक",
        "hu": "a az és hogy nem is egy ez van volt meg de kell lehet",
        "id": "yang dan di dengan untuk dari dalam ini itu pada tidak adalah",
        "it": "di e il la che in un per è non una con del della si i",
        "mr": "आणि आहे या च्या हे तो की व ते होते नाही एक",
        "ms": "yang dan di dengan untuk dari dalam ini itu pada tidak adalah",
        "nl": "de het een en van in is dat op te zijn met voor niet",  # codespell:ignore
        "no": "og i det er på en som til av for at med de ikke",  # codespell:ignore
        "pl": "i w na z się nie do to że jest o jak a po",
        "pt": "de a o que e do da em um para com não uma os no se",
        "ro": "de și în la a care cu o pe un că nu din este",
        "ru": "и в не на что с он как это по но из у к для или от до быть",
        "sv": "och i att det en som på är av för den med till inte",  # codespell:ignore
        "sw": "ya na wa kwa ni katika za la kuwa cha hii yake",
        "tr": "ve bir bu da de için ile olarak çok daha ne gibi o veya olan",  # codespell:ignore
        "uk": "і в на не що з до та як це за у він але для або від",
        "ur": "کے کی میں ہے اور سے کا کو پر نے یہ کہ ہیں نہیں",
        "vi": "và của là có trong được cho một không với các những để này",
    }.items()
}
"""Tried on Django's translations, in pieces of sixty words: nine in ten or more have two of the list. Korean glues such
words to others, Chinese, Japanese and Thai write them together: they have no list."""
