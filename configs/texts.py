"""Labelled texts to train on: templates, a language model (TaI-Adapter, arXiv 2312.04160), or captions.

    mlclip generate --config=texts:templates --output=texts.jsonl --config.labels=labels.txt

    mlclip generate --config=texts:language_model --output=texts.jsonl --config.labels=labels.txt \\
        --config.language_model.address=http://localhost:8000/v1 --config.language_model.model=NAME

    mlclip generate --config=texts:captions --output=texts.jsonl --config.labels=labels.txt \\
        --config.captions=captions_train2017.json --config.synonyms=coco

Variants:
  templates       sentences that name all their labels, and nothing else; 12 seconds for 100,000 of them.
  language_model  captions by a model that is told the labels, at a server or in this process; hours.
  captions        that people wrote of images, with the labels that they name, as TaI-DPT has them.

The paper has Vicuna-33b-1.3v write captions, and asks in the conversation for another one, or a shorter one.
It does not state how many texts, how many of the same labels, or the sampling.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mlclip_jax import recipes

VARIANTS = ("templates", "language_model", "captions")


def get_config(variant=""):
    """The recipe; `variant` is one of `VARIANTS`."""
    variant, _ = recipes.read_variant("texts", variant, VARIANTS, {})
    config = ConfigDict()
    config.recipe = f"texts:{variant}"
    config.labels = placeholder(str)  # text file, a label per line
    if variant != "templates":
        config.synonyms = placeholder(str)  # JSON file of other names for labels; or voc, coco, nus_wide
    if variant == "captions":
        config.captions = placeholder(str)  # COCO's JSON, a table, or a text file with a caption per line
        config.caption_column = placeholder(str)  # of a table; by default caption, captions or text
        config.spacy_model = placeholder(str)  # such as en_core_web_sm: then only nouns are labels
        return config

    config.seed = 0  # which labels each text is about, and in which order
    config.number = 10_000  # texts; may grow later
    config.max_labels = 5  # a text is about 1 to this many labels
    config.size_weights = ""  # "3,2,1,1,1": how often it is about 1, 2, ... labels; by default all alike
    config.per_combination = 2  # texts about the same labels
    if variant == "language_model":
        config.language_model = ConfigDict()
        config.language_model.model = placeholder(str)  # its name at the server; or a folder or hub name
        config.language_model.address = ""  # of a server, "http://localhost:8000/v1"; empty: in this process
        config.language_model.temperature = 0.7
        config.language_model.max_tokens = 100  # of an answer; 0: as the model has it
        config.language_model.timeout_seconds = 60.0  # without a sign of the server

        config.conversation = ConfigDict()
        config.conversation.instruction = 1  # or 2, see texts/conversations.py
        config.conversation.max_words = 50  # of a text; CLIP reads 77 tokens
        config.conversation.attempts = 3  # answers in a row that may be rejected, before a conversation ends
        config.conversation.reject_unnamed = True  # texts that name none of their labels
        config.conversation.concurrency = 8  # conversations at once
        config.conversation.retries = 6  # times that an answer which did not come is asked for again
        config.conversation.retry_seconds = 1.0  # before the first of them; then twice as long, and so on
    return config
