"""Golden vectors of src/seal and src/trust, computed from docs/wire-format.md (W-1, W-16, W-19 to W-24) alone.

    pip install cryptography && python3 tests/golden_vectors.py

prints the session id, the ratchet's next secret, frame 0 and, with epochs of 4 frames, frame 4; then the MAC of a
proof, TLS's exporter context, and the session ids of certificates and of both.
"""

import hashlib
import hmac

from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def extract(salt, ikm):
    return hmac.new(salt, ikm, hashlib.sha256).digest()


def expand_label(secret, label, length):
    label = b"sealane1 " + label
    info = length.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0"
    out, block, index = b"", b"", 1
    while len(out) < length:
        block = hmac.new(secret, block + info + bytes([index]), hashlib.sha256).digest()
        out, index = out + block, index + 1
    return out[:length]


def frame(secret, counter, header, payload):
    key, iv = expand_label(secret, b"key", 32), expand_label(secret, b"iv", 12)

    def nonce(part):
        mask = part.to_bytes(4, "big") + counter.to_bytes(8, "big")
        return bytes(x ^ y for x, y in zip(iv, mask))

    prefix = len(header).to_bytes(2, "little") + b"\0\0" + len(payload).to_bytes(4, "little")
    sealed_header = AESGCM(key).encrypt(nonce(0), header, prefix)
    return prefix + sealed_header + AESGCM(key).encrypt(nonce(1), payload, sealed_header[-16:])


secret = bytes([0x5E]) * 32
updated = expand_label(secret, b"upd", 32)
print(expand_label(extract(b"handshake hash", b"agreed"), b"session id", 16).hex())
print(updated.hex())
print(frame(secret, 0, b"\7" * 32, b"guest memory").hex())
print(frame(updated, 4, b"\7" * 32, b"guest memory").hex())

psk = expand_label(extract(b"sealane1 one-time secret", b"\7" * 32), b"join", 32)
key = expand_label(extract(b"sealane1 proof", psk), b"join", 32)
print(hmac.new(key, bytes(range(64)) + b"\x09" * 16, hashlib.sha256).hexdigest())
reply = bytes([0, 1, 0, 0, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 3]) + bytes(15)
print(hashlib.sha256(b"\3" * 112 + reply).hexdigest())
for salt in b"sealane1 certificates", psk:
    print(expand_label(extract(salt, bytes(range(64))), b"session id", 16).hex())
