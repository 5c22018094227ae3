// Package sink delivers by HTTP: it makes one signed POST to a customer's server and returns the
// result.
//
// # Promises
//
//   - Attempt makes one attempt and returns a value. It never follows a redirect and never panics.
//   - It sends the request more than once in two cases, within the same deadline. If a kept
//     connection ends before an answer, it sends on a fresh one, because servers close kept
//     connections whenever they like. And while former secrets sign as well, it sends with another
//     secret after a 400, 401, 403 or 410, with three secrets at most. So a server may see an event
//     more than once, which at-least-once allows. After any other failure of a request that was
//     sent, the next attempt begins with another secret. An endpoint is Gone once each secret has
//     got a 410.
//   - Each valid secret has an entry in Webhook-Signature. X-Quintago-Signature has room for one:
//     the secret that the receiver accepted last. While it has accepted none, the order is: the
//     oldest, which the receiver still has; the newest, which it will change to; then the others.
//     Target remembers this in memory.
//   - One deadline, delivery.timeout, covers DNS, connect, TLS, request, headers and body.
//   - A fault on this side of the wire is no attempt (NotMade): descriptors, memory, ports, routes,
//     the gateway (route.go), root certificates, and the resolver. To find out whether our resolver
//     or a customer's DNS fails, or says that a name is gone, the package asks for other names
//     (names.go).
//   - Certificates are judged by the time that is signed, which is the database's, and not by this
//     host's clock.
//   - The status line decides. 2xx is a success, whatever the body does afterwards. Everything else
//     is a failure.
//   - The body is sent and signed as it is given, byte for byte, under both schemes (see Sign).
//   - No connection is opened to an address that the policy below refuses, however the URL or DNS
//     spells it. Each address is judged just before it is dialed, so a name that changes between
//     two attempts gains nothing. Environment variables cannot put a proxy in between.
//   - What a server sends is bounded (32 KiB of headers, 4 KiB of body) and made storable. Reason
//     phrases are not used.
//   - A Result or an error holds no secret: neither the endpoint's secret nor its URL's path, query
//     or credentials.
//
// # The client
//
// This package has an HTTP/1.1 client of its own (client.go), made for one POST at a time. The
// goroutine of an attempt writes the request and reads the answer itself. On a kept connection that
// takes three system calls: look, write, read (wire.go). The client has one goroutine beside it: it
// sends a body of more than 32 KiB.
//
//	webhook.go   Attempt: what is sent how often, and the result
//	request.go   Request -> bytes, with both signatures
//	client.go    a kept connection or a fresh one, and once more on a fresh one
//	idle.go      the connections between two attempts
//	dial.go      DNS and connect, through the guard
//	conn.go      one exchange: write, read the head, read the useful part of the body
//	wire.go      the system calls of an exchange on a kept connection
//	answer.go    bytes -> status, headers, body (RFC 9112), strictly
//
// These rules exist because servers need them:
//
//   - A connection is kept only if the answer has ended as it announced, with nothing behind it.
//     These end the connection: chunks beside a length, chunks of HTTP/1.0, a body behind a 204,
//     and a body above 4 KiB. A malformed head is no answer: lengths that differ, a blank before a
//     colon, codings other than chunked.
//   - A kept connection is used for a minute at most, counted from when it was opened, so that the
//     agent follows a name that moves. It is used no longer than the server says in Keep-Alive,
//     less a second (or less half of a time below two seconds). Before each use the client looks
//     whether it has ended or has bytes.
//   - The request goes once more, on a fresh connection, if the kept one still ends before a status
//     line, or if it brings something that is no status line, or a 408 and its end. A server that
//     does so three times in a row gets fresh connections for a minute.
//   - A server may answer before it has read a long request. That status counts. After a 2xx the
//     rest is sent for a second more; otherwise it is not sent.
//   - The client waits for the rest of an answer: 50 ms after a 2xx, 100 ms after another status,
//     because the log shows its body.
//   - At most MaxIdlePerHost and MaxIdle connections are kept, those that were used last. One takes
//     3 KiB, and 12 KiB over TLS.
//
// make differences compares the client with net/http, in the zoo and over 100,000 generated
// answers.
//
// # Addresses
//
// A row takes precedence over the rows below it. The guard is the security boundary. CheckURL
// applies the same rules earlier, as far as the text of a URL shows them, so that a person gets a
// clear sentence.
//
//	never        whatever network.allow_networks says: link-local, cloud metadata (also the public
//	             168.63.129.16 of Azure), multicast, broadcast, unspecified, and IPv6 that carries
//	             an IPv4 address (NAT64, 6to4, Teredo, SIIT, IPv4-compatible)
//	allowed      what network.allow_networks covers
//	refused      the host's own addresses and the database's (WebhookConfig.DenyAddrs)
//	refused      IPv4 of the IANA special-purpose registry: loopback, private, shared, ...
//	refused      IPv6 outside 2000::/3 (loopback, unique local, ...), and the special-purpose
//	             ranges inside it
//	allowed      every other address
//
// An IPv4-mapped IPv6 address is judged as its IPv4 address. Zones are ignored.
//
// # Classes
//
// A failure has a Class, a stable word for programs, and an Error, a sentence for people.
//
//	invalid_url         CheckURL refuses the URL
//	invalid_secret      CheckSecret refuses the secret
//	invalid_event_id    the event's id cannot be sent in a header, or has a dot
//	blocked_address     the address policy refuses the address of the URL or of its host name
//	dns_error           the host name does not exist, or DNS failed or did not answer
//	connect_refused     nothing listens on that port
//	connect_timeout     the connection was not established in time
//	tls_expired         the certificate is expired or not valid yet
//	tls_untrusted       the certificate is not signed by a known authority
//	tls_wrong_host      the certificate is for other host names
//	tls_client_certificate  the server wants a client certificate
//	tls_error           any other failure of the TLS handshake
//	timeout             connected, but no answer in time
//	connection_reset    the connection was closed or reset before an answer
//	not_http            the server answered something other than HTTP
//	http2_only          the server speaks HTTP/2 only, and the agent HTTP/1.1
//	h2c                 the same without TLS
//	response_too_large  the response headers exceed their limit
//	redirect            the server answered 3xx
//	http_status         the server answered another status that is not 2xx
//	network_error       none of the above, such as no route to the server
//	internal_error      a fault of the agent itself, which is not the server's doing
//	local_fault         this host or its resolver failed (Fault): it was no attempt
//	canceled            the caller's context ended first; the result is unknown
//
// # Event ids
//
// Standard Webhooks signs id, timestamp and body joined by dots. Its specification says that the
// user should not choose the id, and that it must at the very least have no dot. Whoever chooses an
// id with a dot can make us sign what reads as another id, time and body. Receivers read timestamps
// in many ways ("17-x" is 17 in some languages), so every dot is refused. Such an event fails at
// once for all endpoints, and the failure counts for none. The ids that the outbox makes have no
// dot.
//
// # Goroutines
//
// Each question to the resolver has a goroutine, for seven seconds at most. The goroutine that
// sends a long request ends with its attempt. A timer closes idle connections; Close stops it and
// closes all of them.
package sink
