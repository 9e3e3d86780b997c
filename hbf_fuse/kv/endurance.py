"""How long flash lasts under what decoding writes."""

DAYS_A_YEAR = 365


def years(capacity_gb: float, cycles: float, written_gb_per_day: float, amplification: float = 1.0) -> float:
    """Until every cell has had its program and erase cycles, where writes are spread evenly.

    amplification: bytes programmed for each byte written. Infinite where nothing is written.
    """
    if not written_gb_per_day:
        return float("inf")
    return capacity_gb * cycles / amplification / written_gb_per_day / DAYS_A_YEAR


def streams(
    capacity_gb: float,
    cycles: float,
    gb_per_day_each: float,
    lifetime_years: float,
    amplification: float = 1.0,
) -> float:
    """How many streams that each write so much a day the flash bears for so long."""
    return years(capacity_gb, cycles, gb_per_day_each, amplification) / lifetime_years
