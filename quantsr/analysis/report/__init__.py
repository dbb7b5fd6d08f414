"""``quantsr report``: runs side by side in one HTML file that needs nothing else. ``command`` puts
it together; ``runs``, ``pictures`` and ``curves`` read what runs left; ``html`` writes it."""
