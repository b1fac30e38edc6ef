"""A load generator that stands alone: it measures any OpenAI-compatible server, and takes nothing from this one.

Of the other packages it may import `tenancy.units` alone, to read sizes and durations as the configuration file does.
So far there is its client; scenarios, statistics and reports come later.
"""
