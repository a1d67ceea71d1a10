"""A finished run behind HTTP, in the shape that OpenAI-compatible clients send. Needs the extra `aptp[serve]`.

`server` runs and stops; `app` has the endpoints and `guard` what stands before them; `service` takes requests on and
routes them; `batching` makes batches; `engine` draws.
"""
