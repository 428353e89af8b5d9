"""From ``app.config`` to frozen settings; every configuration error is born here."""
