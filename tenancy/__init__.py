"""Pure policy: who the tenants are, what they may have, and whether one more call fits.

Nothing here awaits, reads a clock, draws a random number or does I/O: times, readings and rankings are passed in, and
decisions come back as values. So all of it runs in a property test or in virtual time as it runs in production. What
pods exist and how they are doing is asked through a `Protocol` (`tenancy.admission.Ranking`), which `backends`
answers; what a refusal looks like over HTTP is `gateway`'s affair. Modules bottom-up, each importing only what stands
before it: units, policy, config, directory, call, need, refusal, rates, ledger, queue, admission, plan.
"""
