"""Which path leads where: the hot endpoints, health, models and the admin address.

Routes translate and delegate; the hot ones are plain routes that hand the call to `gateway.exchange` at once.
"""
