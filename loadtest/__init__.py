"""A load generator that stands alone: it measures any OpenAI-compatible server, and takes nothing from this one.

Two processes make a run. One carries the streams (`streams`, `load`, `client`, `answer`) and does nothing else; the
other decides, adds up and shows (`run`, `tally`, `session`). They speak in `messages`. A `Scenario` says what to do, a
`Summary` what came of it, and everything that is shown or compared is made from that. Of the other packages
`tenancy.units` alone is imported, to read sizes and durations as the configuration file does.
"""
