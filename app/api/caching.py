"""What every answer says to caches and browsers: whether it may be used again, and that it is only data.

The API's answers change at any moment, so none may be used again unasked. With an ETag an answer may be kept, and is
asked about each time (`no-cache`); without one it is not kept at all (`no-store`). A cache in front with its default
settings would otherwise make up a lifetime of its own (RFC 9111, section 4.2.2), for a 404 too.
"""

from app.api.asgi import Headers

ETAG = b"etag"

NO_CACHE = (b"cache-control", b"no-cache")
NO_STORE = (b"cache-control", b"no-store")
NOSNIFF = (b"x-content-type-options", b"nosniff")
NOTHING = (b"content-security-policy", b"default-src 'none'")

# For answers that have none of these headers yet: with an ETag, and without one.
BESIDE_ETAG: Headers = [NO_CACHE, NOSNIFF, NOTHING]
ALONE: Headers = [NO_STORE, NOSNIFF, NOTHING]


def caching(headers: Headers) -> Headers:
    """What an answer with these headers still lacks. What it says itself is left as it is.

    A page of ours, which is HTML, brings the policy that its parts need, or has none.
    """
    given = dict(headers)
    lacking: Headers = []
    if b"cache-control" not in given:
        lacking.append(NO_CACHE if ETAG in given else NO_STORE)
    if NOSNIFF[0] not in given:
        lacking.append(NOSNIFF)
    if NOTHING[0] not in given and not given.get(b"content-type", b"").startswith(b"text/html"):
        lacking.append(NOTHING)
    return lacking
