"""Configs of the data stages: corpus, tokenizer, packed tokens."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from trine.config.base import Count, Frozen
from trine.errors import nearest

SetName = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
BUILTINS = ("builtin:python-docs",)
PersonalKind = Literal["email", "phone", "ssn", "card", "iban"]
COLUMNS = ("text", "source", "path", "messages")
"""Of every corpus."""
FILING_FIELDS = ("accession", "cik", "company", "form", "period", "filed", "part", "item")
"""Kept beside the text of a filing or its item."""


class ChatConfig(Frozen):
    """Where a record holds its conversation. With nothing named, the keys of each file's first record tell: a list of
    messages under `messages` or `conversations`, or one of the known pairs of question and answer."""

    conversation: str | None = None
    """Key of the list of messages, each with `role` and `content`, or with `from` and `value`."""
    question: str | None = None
    """Key of the question or instruction, where a record is one question and one answer."""
    context: str | None = None
    """Key of a text that follows the question where it is not blank."""
    answer: str | None = None
    system: str | None = None
    """Key of the system message; a record in which it is blank or absent has none."""

    @model_validator(mode="after")
    def _one_kind(self) -> ChatConfig:
        pair = (self.question, self.answer)
        if (self.question is None) != (self.answer is None):
            raise ValueError("question and answer belong together; name both keys, or neither")
        if self.conversation is not None and any(pair):
            raise ValueError("conversation and question with answer exclude each other")
        if not any(pair) and self.context is not None:
            raise ValueError("context follows a question; name question and answer as well")
        return self


class FilingsConfig(Frozen):
    """Which items of filings are taken, and what a document is. `path` holds Parquet by `trine edgar parse`, or
    edgar-crawler's JSON."""

    forms: tuple[str, ...] = ()
    """Forms to take, such as 10-K; `/A` is a form of its own. Default: all."""
    items: tuple[str, ...] = ()
    """Items to take, such as 1A or 5.02; `II-1A` takes part and item. Default: all."""
    min_confidence: float = Field(default=0.0, ge=0, le=1)
    """Items that the parser is less sure of are dropped, with that reason in the ledger."""
    documents: Literal["item", "filing"] = "item"
    """One document per item, or the taken items of a filing in one."""


class SourceConfig(Frozen):
    """One origin of text or conversations: a file, a folder, a glob, or text that ships with Python."""

    name: str = SetName
    path: str = Field(min_length=1)
    """File, folder or glob of .txt .md .jsonl .parquet (also .gz, .zst), or builtin:python-docs; with `chat`, of
    .jsonl .json .parquet; with `filings`, of .parquet .json."""
    licence: str = "unknown"
    """Recorded in the ledger."""
    set: str = Field(default="train", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    """train, or the name of an evaluation set these documents are held out for."""
    include: tuple[str, ...] = ("*",)
    """Globs on the path below `path` (or the file name); a file must match one."""
    exclude: tuple[str, ...] = ()
    text_field: str = "text"
    """The text's key in JSONL, its column in Parquet."""
    chat: ChatConfig | None = None
    """The records are conversations, trained on their answers alone. `{}` finds out how each file holds them."""
    filings: FilingsConfig | None = None
    """The records are items of filings; `{}` takes all. Accession, cik, company, form, period, filed, part and item
    stay beside the text."""
    fields: tuple[str, ...] = ()
    """Keys of JSONL or columns of Parquet kept beside the text, for `heldout` and `boilerplate` to ask for."""
    documents: Literal["file", "line"] = "file"
    """In text files: one document per file, or one per non-empty line."""
    strip: Literal["none", "gutenberg"] = "none"
    """gutenberg: drop Project Gutenberg's header and footer."""

    @model_validator(mode="after")
    def _known_builtin(self) -> SourceConfig:
        if self.path.startswith("builtin:") and self.path not in BUILTINS:
            close = nearest(self.path, BUILTINS)
            raise ValueError(f"path '{self.path}' is not one of {', '.join(BUILTINS)}{close}")
        if self.path in BUILTINS and self.chat is not None:
            raise ValueError(f"chat: {self.path} is text and holds no conversation")
        if self.filings is not None and (self.chat is not None or self.fields or self.path in BUILTINS):
            raise ValueError("filings: brings its own fields, and is neither chat nor a builtin")
        for name in self.fields:
            if name in COLUMNS:
                raise ValueError(f"fields: '{name}' is a column of every corpus; rename it")
        return self

    @property
    def kept(self) -> tuple[str, ...]:
        """Fields kept beside the text."""
        return FILING_FIELDS if self.filings is not None else self.fields


class HeldoutRule(Frozen):
    """Training documents held out by a field: a share of its values, such as companies, or values after a date."""

    set: str = SetName
    """Name of the evaluation set they go to."""
    by: str
    """The field, such as cik or filed."""
    fraction: float | None = Field(default=None, gt=0, lt=1)
    """Share of the field's values held out, chosen by their hash: every document of a company, or none."""
    after: str | None = Field(default=None, pattern=r"^\d{4}(-\d{2}(-\d{2})?)?$")
    """Hold out later dates (YYYY-MM-DD)."""

    @model_validator(mode="after")
    def _one_kind(self) -> HeldoutRule:
        if (self.fraction is None) == (self.after is None):
            raise ValueError("give either fraction or after")
        if self.set == "train":
            raise ValueError("set: 'train' is not held out; name an evaluation set")
        return self


class ExecutorConfig(Frozen):
    """Machines that look for near-duplicates, by datatrove's executors (`pip install trine[cluster]`)."""

    kind: Literal["local", "slurm", "ray"] = "local"
    """Processes of this machine, a Slurm cluster, or Ray."""
    tasks: Count = Field(default=8, ge=1)
    """Parts that the files of the sources are read in."""
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Given to datatrove's executor as they are, such as workers, or partition and time for Slurm."""


class NearDuplicatesConfig(Frozen):
    """MinHash over five words in a row: the first text read is kept, held-out sets being read first."""

    threshold: float = Field(default=0.8, gt=0.1, le=1)
    """Texts whose sets of five words in a row overlap by at least this much (Jaccard index) are near-duplicates."""
    executor: ExecutorConfig | None = None
    """Look for them on many machines; all must see the corpus folder and the sources. Default: in this process."""


class BoilerplateConfig(Frozen):
    """Paragraphs repeated in filings of one company are kept once."""

    filings: int = Field(default=2, ge=2)
    """A paragraph is repeated when it stands in at least this many filings of the company."""
    min_characters: int = Field(default=100, ge=1)
    """Shorter paragraphs are left alone."""
    company: str = "cik"
    """Field that tells the company."""
    filing: str = "accession"
    """Field that tells the filing."""


class QualityConfig(Frozen):
    """Limits on what passes as text; tables and texts of fewer than 50 words are left alone."""

    language: Literal["en", "de", "fr", "es", "it", "nl", "pt"] | None = "en"
    """Told by function words; null takes any."""
    min_function_words: float = Field(default=0.05, ge=0, le=1)
    """Share of words that are frequent function words of the language, in a text with letters beyond ASCII. Prose of
    real filings: 0.10 and more; lists of names have fewer and are left alone."""
    min_word_bytes: float = Field(default=3.0, ge=0)
    """Of the mean word. Real filings: 4.3 to 6.6."""
    max_word_bytes: float = Field(default=10.0, gt=0)
    max_symbols: float = Field(default=0.1, ge=0, le=1)
    """Share of characters that are symbols of code rather than of prose or figures. Real filings: 0.01 and less."""
    max_repeated_lines: float = Field(default=0.6, ge=0, le=1)
    """Share of the text that is lines said before. Real filings: 0.47 and less."""
    max_undecoded: float = Field(default=0.01, ge=0, le=1)
    """Share of replacement characters (U+FFFD)."""


class EvaluationSet(Frozen):
    """Texts that must not be trained on."""

    name: str = SetName
    path: str = Field(min_length=1)
    """File or folder of .jsonl .json .parquet .csv .txt .md (also .gz, .zst)."""
    fields: tuple[str, ...] = ()
    """Keys, at any depth, whose texts count. Default: every text in the records."""


class DecontaminateConfig(Frozen):
    """Training documents are searched for texts of evaluation sets."""

    sets: tuple[EvaluationSet, ...] = Field(min_length=1)
    words: int = Field(default=13, ge=5, le=100)
    """So many words in a row in both are a leak."""
    common_in: int | None = Field(default=10, ge=1)
    """Words in a row that stand in more training documents than this are a common phrase and no leak, unless a document
    holds most of a longer evaluation text; counting them takes a reading of its own. null: every such phrase is a
    leak."""
    action: Literal["drop", "cut"] = "drop"
    """drop: the document; cut: the lines that hold the words (of a conversation, all)."""

    @model_validator(mode="after")
    def _names_differ(self) -> DecontaminateConfig:
        names = [one.name for one in self.sets]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two evaluation sets are named '{name}'; names must differ")
        return self


class CorpusConfig(Frozen):
    """Text in, deduplicated documents and a ledger out."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    heldout_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training documents, chosen by the hash of their text, moved to the set `heldout`."""
    heldout: tuple[HeldoutRule, ...] = ()
    """Training documents held out by company, date or another field; the first rule that fits decides."""
    dedup: Literal["exact", "none"] = "exact"
    """exact: a text seen before is dropped; held-out texts win over training texts."""
    near_duplicates: NearDuplicatesConfig | None = None
    """Drop texts that nearly repeat one read before; `{}` for the defaults."""
    boilerplate: BoilerplateConfig | None = None
    """Keep once what a company repeats from filing to filing; `{}` for the defaults."""
    quality: QualityConfig | None = None
    """Drop what is not text of the wanted language; `{}` for the defaults."""
    decontaminate: DecontaminateConfig | None = None
    """Keep texts of evaluation sets out of what is trained on."""
    personal: Literal["off", "mask", "drop"] = "off"
    """E-mail addresses, phone, social security, card and IBAN numbers: mask each, or drop the document."""
    personal_kinds: tuple[PersonalKind, ...] = ("email", "phone", "ssn", "card", "iban")
    """What `personal` looks for."""
    write_dropped: bool = False
    """Write what was dropped, with its text and reason, to dropped.parquet in the corpus folder."""
    min_characters: Count = Field(default=1, ge=1)
    """Shorter documents are dropped, with that reason in the ledger."""
    max_document_bytes: Count = Field(default=8 << 20, ge=1 << 10)
    """A longer text is cut at line ends into several documents, so memory stays flat; a longer conversation is
    dropped."""
    bad_files: Literal["stop", "skip", "quarantine"] = "stop"
    """What a file that cannot be read does: stop the stage (exit 2); be skipped as a whole and listed in the ledger; or
    lose the bad record, or the rest of the file, to quarantine.jsonl. With a source of filings, quarantine is the
    default."""

    @model_validator(mode="before")
    @classmethod
    def _filings_are_quarantined(cls, given: Any) -> Any:
        sources = given.get("sources") if isinstance(given, dict) else None
        if isinstance(sources, list | tuple) and "bad_files" not in given:
            held = [one.get("filings") if isinstance(one, dict) else getattr(one, "filings", None) for one in sources]
            if any(one is not None for one in held):
                return given | {"bad_files": "quarantine"}
        return given

    @model_validator(mode="after")
    def _names_differ(self) -> CorpusConfig:
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are named '{name}'; names must differ")
        held = {field for source in self.sources for field in source.kept}
        asked = [rule.by for rule in self.heldout]
        asked += [self.boilerplate.company, self.boilerplate.filing] if self.boilerplate else []
        for name in asked:
            if name not in held:
                known = ", ".join(sorted(held)) or "none"
                raise ValueError(f"no source keeps the field '{name}' (fields: {known}){nearest(name, held)}")
        return self


class TokenizerConfig(Frozen):
    """A byte-level BPE with Trinity's pre-tokenizer, trained on the corpus, or one that exists."""

    path: str | None = None
    """An existing tokenizer.json (or a folder with one) to use instead of training one."""
    corpus: str | None = None
    """Folder of the corpus stage. Default: corpus/ in the run folder."""
    vocab_size: Count = Field(default=8192, ge=259)
    """256 bytes, the special tokens, and merges. Trinity: 200,000."""
    special_tokens: tuple[str, ...] = ()
    """More special tokens for a tokenizer trained here, such as those of a chat template. Those of chatml are added
    when it is the template."""
    chat_template: str | None = None
    """How conversations become text: chatml, plain, or a Jinja file. Default: the one in the folder `path`; else, where
    the corpus holds conversations, chatml, or plain for an existing tokenizer without chatml's tokens."""
    min_frequency: int = Field(default=2, ge=1)
    sample_bytes: Count | None = Field(default=10_000_000_000, ge=1)
    """Train on at most this much text, taken evenly over the corpus; null takes all."""


class PackConfig(Frozen):
    """Documents in, memory-mapped token shards out."""

    corpus: str | None = None
    """Folder of the corpus stage. Default: corpus/ in the run folder."""
    tokenizer: str | None = None
    """Folder of the tokenizer stage. Default: tokenizer/ in the run folder."""
    shard_tokens: Count = Field(default=100_000_000, ge=1024)
    """Tokens in one shard file, at most; a document is never cut by a shard."""
