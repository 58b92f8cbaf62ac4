"""What makers of cards state: utilisation is a share of that; of an unknown card nothing is guessed."""

from __future__ import annotations

# bf16 matrix products without sparsity, FLOP/s, by a part of the card's name, special ones first. NVIDIA's
# data sheets: H100 (2023), H200 (2024), A100 (2021), L40S (2023), L4 (2023)
PEAKS = {
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}


def peak_of(card: str) -> float | None:
    """FLOP/s that the card's maker states; None for a card not in the table, and for a slice of one (MIG)."""
    words = card.replace("-", " ")
    if " MIG " in words:
        return None
    return next((peak for name, peak in PEAKS.items() if f" {name} " in f" {words} "), None)
