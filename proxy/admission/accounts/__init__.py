"""
People: their passwords, their sessions, and the tokens of issuers outside. Virtual keys are `admission.keys`.

A person is an identity (issuer, subject). What says who that is always comes from a verifier of that one issuer.
"""
