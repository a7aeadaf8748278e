"""UCI Online Retail."""

from __future__ import annotations

from dataclasses import replace

from raw_files.files import RawFile, names


def online_retail() -> list[RawFile]:
    header = names("""InvoiceNo StockCode Description Quantity InvoiceDate UnitPrice CustomerID
        Country""")
    lines = [
        (
            536365 + 100 * customer + 2 * month,
            f"{85100 + (7 * customer + 3 * month + n) % 30}{'AB'[n % 2]}",
            "HANGING HEART, WHITE" if n else "METAL LANTERN",
            6,
            f"{2010 + (month + 11) // 12}-{(month + 11) % 12 + 1:02}-0{n + 1} 08:26:00",
            2.55,
            None if n == 4 else f"{17850 + customer}.0",
            "United Kingdom",
        )
        for month in range(13)  # December 2010 to December 2011
        for customer in range(4)
        for n in range(5)
    ]
    early = "1969-12-01 08:26:00"
    file = RawFile("online-retail.csv", lines, header=header, quoted=True, time=4, early=early)
    return [replace(file, text=2, detected=True)]
