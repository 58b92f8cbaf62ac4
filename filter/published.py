"""The rule sets of published corpora, each with the source of its numbers.

[m]: from memory of the paper, where no code was published. Each boundary is a test in tests/test_rules.py.
"""

from __future__ import annotations

from ..recipe import Rule
from .ruleset import RuleSet

ALIGN_TEXT = RuleSet(
    "ALIGN (2021), section 3: 3 to 20 unigrams, no rare token, at most 10 pictures for a caption",
    (
        Rule("caption_common", "images_per_caption_v1 > $max_images_per_caption"),
        Rule("rare_token", "rarest_token_rank_v1 > $vocabulary"),
        Rule("caption_short", "n_words_v1 < $min_words"),
        Rule("caption_long", "n_words_v1 > $max_words"),
    ),
    {"max_images_per_caption": 10, "vocabulary": 100_000_000, "min_words": 3, "max_words": 20},
)
ALIGN_IMAGE = RuleSet(
    "ALIGN (2021), section 3: shorter side over 200 pixels, aspect under 3, at most 1,000 alt-texts",
    (
        Rule("too_small", "least(original_width, original_height) <= $small_side"),
        Rule(
            "aspect",
            "greatest(original_width, original_height) >= $aspect * least(original_width, original_height)",
        ),
        Rule("image_common", "captions_per_image_v1 > $max_captions_per_image"),
    ),
    {"small_side": 200, "aspect": 3, "max_captions_per_image": 1_000},
)
LAION_TEXT = RuleSet(
    "LAION-400M and 5B: alt-text of 5 characters, picture links that can be a photo, short host names",
    (
        Rule("caption_short", "n_chars_v1 < $min_chars"),
        Rule("url_format", r"regexp_matches(lower(url), '\.(svg|gif)([?#]|$)')"),
        Rule("host_long", "length(regexp_extract(url, '^[a-z]+://([^/?#]*)', 1)) > $max_host_chars"),
    ),
    {"min_chars": 5, "max_host_chars": 60},
)
LAION_IMAGE = RuleSet(
    "LAION-400M and 5B: 5,000 bytes, at most 89,478,484 pixels, JPEG, PNG or WebP",
    (
        Rule("too_small", "original_bytes < $min_bytes"),
        Rule("too_large", "original_width::BIGINT * original_height > $max_pixels"),
        Rule("format", "NOT list_contains($formats, format)"),
    ),
    {"min_bytes": 5_000, "max_pixels": 89_478_484, "formats": ("jpeg", "png", "webp")},
)
LAION_SCORE = RuleSet(
    "LAION-5B: cosine of 0.28 for English, 0.26 for every other language; for OpenAI's ViT-B/32 only",
    (
        Rule("not_scored", "cosine_v1 IS NULL"),
        Rule(
            "cosine",
            "cosine_v1 < CASE WHEN lang_v1 = 'en' THEN $min_cosine_en ELSE $min_cosine_other END::FLOAT",
        ),
    ),
    {"min_cosine_en": 0.28, "min_cosine_other": 0.26},
)
WUKONG_TEXT = RuleSet(
    "Wukong (2022) [m]: a Chinese character, 32 characters at most, no file name, at most 10 pictures",
    (
        Rule("no_chinese", "n_han_v1 < $min_han"),
        Rule("caption_long", "n_chars_v1 > $max_chars"),
        Rule("filename", "filename_like_v1"),
        Rule("caption_common", "images_per_caption_v1 > $max_images_per_caption"),
        Rule(
            "sensitive",
            "len(list_filter($sensitive_words, lambda word: contains(lower(caption), lower(word)))) > 0",
        ),
    ),
    {"min_han": 1, "max_chars": 32, "max_images_per_caption": 10, "sensitive_words": None},
)
WUKONG_IMAGE = RuleSet(
    "Wukong (2022) [m]: both sides over 200 pixels, aspect of 3 at most",
    (
        Rule("too_small", "least(original_width, original_height) <= $small_side"),
        Rule(
            "aspect",
            "greatest(original_width, original_height) > $aspect * least(original_width, original_height)",
        ),
    ),
    {"small_side": 200, "aspect": 3},
)
DATACOMP_TEXT = RuleSet(
    "DataComp basic, its text half: English, more than 2 words, more than 5 characters",
    (
        Rule("language_other", "lang_v1 IS DISTINCT FROM $language"),
        Rule("caption_short", "n_spaced_v1 <= 2 OR n_chars_v1 <= 5"),
    ),
    {"language": "en"},
)
DATACOMP_IMAGE = RuleSet(
    "DataComp basic, its picture half: shorter side of 200 pixels, aspect of 3 at most",
    (
        Rule("too_small", "least(original_width, original_height) < 200"),
        Rule(
            "aspect",
            "greatest(original_width, original_height) > 3 * least(original_width, original_height)",
        ),
    ),
)
COYO_TEXT = RuleSet(
    "COYO-700M: English, more than 5 characters, 3 to 256 words, 1,000 characters, seen 10 times at most",
    (
        Rule("language_other", "lang_v1 IS DISTINCT FROM $language"),
        Rule("caption_short", "n_chars_v1 <= 5 OR n_spaced_v1 < 3"),
        Rule("caption_long", "n_spaced_v1 > 256 OR n_chars_v1 > 1000"),
        Rule("caption_common", "images_per_caption_v1 > 10"),
    ),
    {"language": "en"},
)
COYO_IMAGE = RuleSet(
    "COYO-700M: 5 KB, shorter side of 200 pixels, aspect of 3 at most",
    (Rule("too_small", "original_bytes < 5000"), *DATACOMP_IMAGE.rules),
)
DATACOMP_BASIC = RuleSet(
    "DataComp's basic filter, both halves", DATACOMP_TEXT.rules + DATACOMP_IMAGE.rules, DATACOMP_TEXT.values
)
ALIGN_NEAR = RuleSet(
    "ALIGN, appendix A: near-copies, found with near.cosine = 0.975",
    (Rule("near_copy", "near_rank_v1 > 0 AND near_adopted_v1 IS NOT TRUE"),),
)
