"""All named sets of rules: pairmill's own, here, and the published ones (published.py).

To add a rule, copy one: `Rule("reason", "SQL over columns")`. A comparison with a float column casts its
value to FLOAT, because 0.05 as stored (0.0500000007) is more than 0.05 as written. A value of None
makes the comparison NULL, which drops nothing: that is how an optional rule is off.
"""

from __future__ import annotations

from ..recipe import Rule
from . import published
from .boilerplate import BOILERPLATE, BOILERPLATE_START
from .ruleset import RuleSet

COPIES = RuleSet(
    "one row for each pair; with a value, at most so many captions for each picture",
    (
        Rule("pair_copy", "pair_rank_v1 > 0"),
        Rule("caption_surplus", "caption_rank_v1 >= $max_captions_per_image"),
    ),
    {"max_captions_per_image": None},
)
LANGUAGE = RuleSet(
    "captions whose language is more than a guess, and one of those wanted",
    (
        Rule("language_unknown", "lang_v1 IS NULL OR lang_prob_v1 < $min_lang_prob::FLOAT"),
        Rule("language_other", "NOT list_contains($languages, lang_v1)"),
    ),
    # under 0.1 one in ten is right; English of which the model knows no word ("a dog") is said with 0.15
    {"languages": None, "min_lang_prob": 0.1},
)
PLAIN_TEXT = RuleSet(
    "captions that say something: letters, neither a file name nor a URL nor what pages say everywhere",
    (
        Rule("no_letters", "NOT has_letter_v1"),
        Rule("filename", "filename_like_v1"),
        Rule("url", "has_url_v1"),
        Rule("boilerplate", "list_contains($boilerplate, plain_caption_v1)"),
        Rule(
            "boilerplate",
            "len(list_filter($boilerplate_start, lambda start: starts_with(plain_caption_v1, start))) > 0",
        ),
        Rule("caption_short", "n_words_v1 < $min_words OR n_chars_v1 < $min_chars"),
        Rule("caption_long", "n_words_v1 > $max_words OR n_chars_v1 > $max_chars"),
        Rule("digits", "digit_share_v1 > $max_digit_share"),
        Rule("punctuation", "punctuation_share_v1 > $max_punctuation_share"),
    ),
    {
        "boilerplate": BOILERPLATE,
        "boilerplate_start": BOILERPLATE_START,
        "min_words": 2,
        "min_chars": None,
        "max_words": 256,
        "max_chars": 1_000,
        "max_digit_share": 0.5,
        "max_punctuation_share": 0.5,
    },
)
NEAR_COPIES = RuleSet(
    "one picture of each group of near-copies, with the captions that it took over",
    (Rule("near_copy", "near_rank_v1 > 0 AND near_adopted_v1 IS NOT TRUE"),),
)
RARE = RuleSet(
    "what a first scorer is trained on: rare and well-formed captions",
    (
        Rule("caption_common", "images_per_caption_v1 > $max_images_per_caption"),
        Rule("no_letters", "NOT has_letter_v1"),
        Rule("filename", "filename_like_v1"),
        Rule("url", "has_url_v1"),
        Rule("caption_short", "n_words_v1 < $min_words"),
        Rule("caption_long", "n_words_v1 > $max_words"),
    ),
    {"max_images_per_caption": 10, "min_words": 3, "max_words": 64},
)
CLIP_SCORE = RuleSet(
    "pairs of at least $min_cosine",
    (Rule("not_scored", "cosine_v1 IS NULL"), Rule("cosine", "cosine_v1 < $min_cosine::FLOAT")),
)
NOISE = RuleSet(
    "pairs of which a share of $max_noise at most is mismatched",
    (
        Rule("not_scored", "mismatch_q_v1 IS NULL"),
        Rule("noise", "mismatch_q_v1 > $max_noise::FLOAT"),
    ),
)
FETCHED = RuleSet("what was fetched: `decide` sees to that before any rule, so this set is empty", ())

SETS: dict[str, RuleSet] = {
    "copies": COPIES,
    "language": LANGUAGE,
    "plain_text": PLAIN_TEXT,
    "fetched": FETCHED,
    "near_copies": NEAR_COPIES,
    "rare": RARE,
    "noise": NOISE,
    "clip_score": CLIP_SCORE,
    "align_text": published.ALIGN_TEXT,
    "align_image": published.ALIGN_IMAGE,
    "align_near": published.ALIGN_NEAR,
    "laion_text": published.LAION_TEXT,
    "laion_image": published.LAION_IMAGE,
    "laion_score": published.LAION_SCORE,
    "wukong_text": published.WUKONG_TEXT,
    "wukong_image": published.WUKONG_IMAGE,
    "datacomp_text": published.DATACOMP_TEXT,
    "datacomp_image": published.DATACOMP_IMAGE,
    "datacomp_basic": published.DATACOMP_BASIC,
    "coyo_text": published.COYO_TEXT,
    "coyo_image": published.COYO_IMAGE,
}
