"""TLS for real: a certificate of openssl's, a client that verifies it, another certificate at SIGHUP, a wrong one, and what plain HTTP gets.

    cargo build -p navicache && python3 tools/serve/tls.py target/debug/navicache
"""

import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import warnings

from server import Server

warnings.simplefilter("ignore", DeprecationWarning)  # TLS 1.1 is asked for on purpose


def certificate(folder, name):
    key, chain = os.path.join(folder, "key.pem"), os.path.join(folder, "chain.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", f"/CN={name}",
         "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", key, "-out", chain],
        check=True, capture_output=True,
    )
    return chain, key


def name_of(server, chain):
    """Asks for `/health`, and says whom the certificate is for."""
    context = ssl.create_default_context(cafile=chain)
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=10)
    connection.request("GET", "/health")
    assert connection.getresponse().read() == b'{"status":"ok"}'
    certificate, version = connection.sock.getpeercert(), connection.sock.version()
    return dict(pair for part in certificate["subject"] for pair in part)["commonName"], version


def main(program):
    with tempfile.TemporaryDirectory() as folder:
        chain, key = certificate(folder, "first")
        with Server(program, os.path.join(folder, "data"), "--tls-cert", chain, "--tls-key", key) as server:
            assert server.url.startswith("https://")
            first, version = name_of(server, chain)
            assert first == "first"
            try:
                http.client.HTTPSConnection("127.0.0.1", server.port, timeout=10).request("GET", "/health")
                raise AssertionError("a client that does not know the certificate trusts it")
            except ssl.SSLCertVerificationError:
                pass
            old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
            try:
                old.wrap_socket(socket.create_connection(("127.0.0.1", server.port), timeout=10))
                raise AssertionError("TLS 1.1 is spoken")
            except (ssl.SSLError, ConnectionError):
                pass
            plain = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            said = plain.recv(100)
            assert not said.startswith(b"HTTP"), said
            # Renewed, and read again.
            certificate(folder, "second")
            server.process.send_signal(signal.SIGHUP)
            time.sleep(0.5)
            assert name_of(server, chain)[0] == "second"
            # A broken one leaves the last.
            good = open(chain).read()
            open(chain, "w").write("nonsense")
            server.process.send_signal(signal.SIGHUP)
            time.sleep(0.5)
            open(chain, "w").write(good)
            assert name_of(server, chain)[0] == "second"
            server.stop()
    print(f"{version}: verified, renewed at SIGHUP, kept when the new one is broken; unknown certificates, TLS 1.1 and plain HTTP get nothing")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "target/debug/navicache")
