"""The columns of every Parquet file, and how a pair gets its name.

A uid is xxh3-128 of (canonical URL, normalised caption): the same on every machine and in every rerun.
"""

from __future__ import annotations

import pyarrow as pa
import xxhash

UID = pa.binary(16)
FLOAT = pa.float32()

# pairs/<part>.parquet: one row per row of a list that has a usable URL and caption, copies included
PAIRS = pa.schema(
    [
        ("uid", UID),
        ("url_hash", UID),  # xxh3-128 of the canonical URL: one picture to fetch
        ("caption_hash", UID),  # xxh3-128 of the normalised caption
        ("url", pa.string()),  # canonical (WHATWG)
        ("caption", pa.string()),  # normalised: NFC, no control characters, single spaces
        ("source", pa.string()),  # the list it came from
        ("source_row", pa.int64()),  # counted from 0 in that list
        ("given", pa.string()),  # JSON object of the list's further columns, or NULL
        ("tar_path", pa.string()),  # where the picture already lies (img2dataset input), or NULL
        ("tar_offset", pa.int64()),
        ("tar_size", pa.int64()),
    ]
)

# pairs/rejected/<task>.parquet: rows of a list that cannot be a pair
REJECTED = pa.schema(
    [
        ("source", pa.string()),
        ("source_row", pa.int64()),
        ("reason", pa.string()),
        (
            "url",
            pa.string(),
        ),  # as given, or the names of a sample's members in a tar; cut to 2,000 characters
        ("caption", pa.string()),  # as given, cut to 2,000 characters
    ]
)

# scores/copies/<part>.parquet: row by row beside pairs/<part>.parquet
COPIES = pa.schema(
    [
        ("uid", UID),
        ("pair_rank_v1", pa.int32()),  # 0 for the first row with this uid, then 1, 2, …
        ("pair_copies_v1", pa.int32()),  # rows with this uid
        ("captions_per_image_v1", pa.int32()),  # distinct captions of this URL
        ("caption_rank_v1", pa.int32()),  # 0-based rank of this caption among its URL's, by uid
        ("images_per_caption_v1", pa.int32()),  # distinct URLs that carry this caption
    ]
)

# raw/<shard>.parquet: one row per pair whose picture was asked for, fetched or not, ordered by (key, uid).
# raw/known-<number>.parquet has no tar: its pairs' pictures were asked for with other captions before
RAW = pa.schema(
    [
        ("uid", UID),
        ("url_hash", UID),
        ("key", pa.string()),  # the tar member's stem: hex of url_hash
        ("url", pa.string()),
        ("caption", pa.string()),
        ("outcome", pa.string()),  # 'ok', or why there is no picture
        ("wave", pa.int16()),  # 0, or which --retry-failed brought it: the highest wave is valid
        ("http_status", pa.int16()),
        ("final_url", pa.string()),
        ("format", pa.string()),  # of the original: jpeg, png, webp, gif …
        ("original_bytes", pa.int64()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("sha256", pa.binary(32)),  # of the original bytes
        ("width", pa.int32()),  # as stored
        ("height", pa.int32()),
        ("pdq_v1", pa.binary(32)),  # 256-bit perceptual hash of the decoded picture
        ("pdq_quality_v1", pa.int16()),  # 0 to 100
        ("chroma_v1", pa.binary(19)),  # colours of nine fields, plain or grey: see crawl/chroma.py
        ("offset", pa.int64()),  # where the stored picture's bytes start in the tar
        ("size", pa.int64()),
        ("stored_xxh3", pa.uint64()),  # xxh3-64 of the stored picture's bytes: a damaged one costs itself
        ("tar", pa.string()),  # the raw shard whose tar holds the bytes; NULL: the one of this sidecar's name
        ("consent_v1", pa.string()),  # what was said against its use, as `source: words; …`; NULL: nothing
        ("consent_agent_v1", pa.string()),  # the name under which that was asked for
        ("host_copies_v1", pa.int32()),  # URLs of its host in this shard that brought the same bytes
        (
            "expected_v1",
            pa.string(),
        ),  # match, near, changed or malformed, by the list's hashes; NULL without
    ]
)

# of every sample of a dataset, where img2dataset's readers look for it
IMG2DATASET = {"status": "success", "error_message": None, "exif": None}

# shards/<shard>.parquet: one row per sample of shards/<shard>.tar, in the tar's order, so that
# the sidecar alone says what a sample is and where its picture lies
SIDECAR = pa.schema(
    [
        ("uid", UID),
        ("key", pa.string()),  # the tar member's stem: hex of uid
        ("url", pa.string()),
        ("picture_url", pa.string()),  # the same, or of an adopted caption the URL of the copy that stayed
        ("caption", pa.string()),
        ("lang_v1", pa.string()),
        ("cosine_v1", FLOAT),
        ("mismatch_p_v2", FLOAT),
        ("mismatch_q_v2", FLOAT),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("sha256", pa.binary(32)),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        *((name, pa.string()) for name in IMG2DATASET),
    ]
)

# scores/language/<part>.parquet: row by row beside pairs/<part>.parquet
LANGUAGE = pa.schema(
    [
        ("uid", UID),
        ("lang_v1", pa.string()),  # ISO 639-1 (639-3 where there is none), NULL for 'cannot say'
        ("lang_prob_v1", FLOAT),  # in [0, 1]
    ]
)

# scores/frequency/<part>.parquet: row by row beside pairs/<part>.parquet; only where a rule asks for it
FREQUENCY = pa.schema(
    [
        ("uid", UID),
        ("rarest_token_rank_v1", pa.int64()),  # 1 for the most frequent token of the list; NULL without words
    ]
)

# scores/entries/<part>.parquet: row by row beside pairs/<part>.parquet; only where a rule asks for it
ENTRIES = pa.schema(
    [
        ("uid", UID),
        ("n_entries_v1", pa.int32()),  # distinct entries (queries, metadata) that the caption holds
        ("entry_share_v1", FLOAT),  # probability that one of them draws it: 1 - prod(1 - t / count)
        ("entry_draw_v1", FLOAT),  # seeded, by uid, in [0, 1): drawn where it is below the share
        # 0-based rank by draw among an entry's pairs, of all its entries the least
        ("entry_rank_v1", pa.int32()),
        ("rarest_entry_v1", pa.string()),  # of the entries held the one that fewest pairs hold
    ]
)

# scores/evaluation/<number>.parquet: one row per picture of an evaluation set, in the order of its files
EVALUATION = pa.schema(
    [
        ("item", pa.string()),  # folder and file, or folder, tar and key
        ("path", pa.string()),  # where its bytes lie
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.binary(32)),
        ("pdq_v1", pa.binary(32)),
        ("pdq_quality_v1", pa.int16()),
        ("chroma_v1", pa.binary(19)),
        ("pdq_mirrored_v1", pa.binary(32)),
        ("chroma_mirrored_v1", pa.binary(19)),
        ("captions", pa.list_(pa.string())),  # in normal form
    ]
)

# redaction/list.parquet: what was asked to be taken out; one of the three is not NULL
REDACTED = pa.schema([("uid", UID), ("url_hash", UID), ("sha256", pa.binary(32)), ("reason", pa.string())])

# scores/leaks/leaks.parquet: one row per fetched pair, ordered by uid; made by `pairmill decontaminate`
LEAKS = pa.schema(
    [
        ("uid", UID),
        ("leak_of_v1", pa.string()),  # the evaluation picture that it is a near-copy of, or NULL
        ("leak_distance_v1", pa.int16()),  # PDQ bits between the two
        ("leak_mirrored_v1", pa.bool_()),  # of the mirrored picture
        ("leak_caption_of_v1", pa.string()),  # the evaluation item with the same caption, or NULL
        ("blocked_v1", pa.bool_()),  # its hash is on a blocklist
    ]
)

# selection/screen/<part>.parquet: row by row beside pairs/<part>.parquet; NULL reason: worth fetching
SCREEN = pa.schema([("uid", UID), ("reason", pa.string())])

# scores/near/near.parquet, or <partition>.parquet: one row per fetched pair, ordered by uid.
# Ranks are of pictures, not of pairs:
# all pairs of a group's best picture have rank 0. A pair of another picture is adopted where the best one
# takes over its caption: it keeps its uid, URL and scores, and is written with the best picture.
# scores/near-embedding/near.parquet, where it stands, holds these groups joined by cosine as well.
NEAR = pa.schema(
    [
        ("uid", UID),
        ("near_group_v1", UID),  # url_hash of the group's best picture; its own where it has no near-copy
        ("near_rank_v1", pa.int32()),  # 0 for the best picture of the group by the stated order
        ("near_size_v1", pa.int32()),  # pictures in the group
        ("near_adopted_v1", pa.bool_()),  # rank above 0, and the best picture takes over the caption
    ]
)

# scores/embedding/<shard>.parquet, row by row beside <shard>.image.npy and <shard>.text.npy (N, D) float16
EMBEDDING = pa.schema(
    [
        ("uid", UID),
        ("fold", pa.int16()),  # which fold the pair is in: its scorer was trained without that fold
        ("cosine_v1", FLOAT),  # by the cross-fitted scorer
        ("cosine_in_sample_v1", FLOAT),  # by a model that may have seen the pair; NULL unless asked for
        ("loss_v1", FLOAT),  # InfoNCE loss of the pair within its scoring batch
    ]
)

# scores/noise/<shard>.parquet: row by row beside scores/embedding/<shard>.parquet
NOISE = pa.schema(
    [
        ("uid", UID),
        ("cosine_v1", FLOAT),
        ("mismatch_p_v2", FLOAT),  # uniform on (0, 1) for a mismatched pair; witnesses are asked from v2 on
        ("mismatch_q_v2", FLOAT),  # bound on the noise among all pairs at least this good, of this language
        ("witnesses_v1", pa.int32()),  # other captions of the picture and its near-copies
        ("asked_v1", pa.bool_()),  # whether p and q are by what they say: two at least, in enough pictures
        ("agree_v1", FLOAT),  # caption and witnesses, in units of the spread between captions; NULL: none
        ("others_v1", FLOAT),  # picture and witnesses, in units of the spread of scores; NULL: none
        ("picture_p_v1", FLOAT),  # of the picture against all its captions, uniform where it is a wrong one
    ]
)

# scores/mismatch/mismatch.parquet: one row per pair that a system with a table of noise (NLIP) was trained on
MISMATCH = pa.schema([("uid", UID), ("mismatch_prob_v1", FLOAT)])  # from what the pair lost in the last epoch

# scores/completed/completed.parquet, scores/pseudo/pseudo.parquet: captions that a system made
COMPLETED = pa.schema([("uid", UID), ("completed_caption_v1", pa.string())])  # by its captioner (NLIP)
PSEUDO = pa.schema([("uid", UID), ("pseudo_words_v1", pa.string())])  # words of the nearest captions

# selection/<name>.parquet: the kept, ordered by uid; <name>.reasons.parquet: every other uid and why
SELECTION = pa.schema([("uid", UID)])
REASONS = pa.schema([("uid", UID), ("reason", pa.string())])


def text_hash(text: str) -> bytes:
    """16 bytes, xxh3-128 of the text's UTF-8."""
    return xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))


def make_uid(url: str, caption: str) -> bytes:
    """The name of a pair, 16 bytes. `url` is canonical and `caption` normalised: neither holds a NUL."""
    return text_hash(f"{url}\0{caption}")


def bytes_hash(data: bytes) -> int:
    """xxh3-64, as `stored_xxh3` has it."""
    return xxhash.xxh3_64_intdigest(data)


def fold_of(group: bytes, folds: int) -> int:
    """Which of `folds` a picture (its near-copy group, or its url_hash) is in."""
    return int.from_bytes(xxhash.xxh3_64_digest(group, seed=0x666F6C64), "big") % folds
