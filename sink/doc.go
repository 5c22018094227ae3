// Package sink knows HTTP delivery: it makes one signed POST to a customer's server and says what came of it.
//
// # Promises
//
//   - Attempt makes one attempt and returns a value. It never follows a redirect and never panics. It sends more than once in two
//     cases, within the same deadline: on a fresh connection when a kept one ends before an answer, since servers close those
//     whenever they like; and, while former secrets sign as well, with another secret after a 400, 401, 403 or 410, three secrets
//     at most. After another failure of a request that was sent the next attempt begins with another one, and an endpoint is
//     Gone once each secret has got a 410. A server may so see an event more than once, which at-least-once allows.
//   - Each valid secret has an entry in Webhook-Signature. X-Quintago-Signature has room for one: that of the secret which the
//     receiver has accepted last. While none was accepted it is the oldest, which the receiver is still on; then the newest, which
//     it changes to; then the others. Target remembers it, in memory.
//   - One deadline, delivery.timeout, covers DNS, connect, TLS, request, headers and body.
//   - Certificates are judged by the time that is signed, which is the database's, not by this host's clock.
//   - What fails on this side of the wire is no attempt (NotMade): descriptors, memory, ports, routes, root certificates, the
//     gateway (route.go), and the resolver. Whether it is our resolver or a customer's DNS that fails, or says that a name is
//     gone, is found out by asking for other names (names.go).
//   - The status line decides: 2xx is a success whatever the body does afterwards, everything else is a failure.
//   - The body is sent and signed as it is given, byte for byte, under both schemes (see Sign).
//   - No connection is opened to an address that the policy below refuses, however the URL or DNS spells it. Addresses
//     are judged when they are dialed, one by one, so a name that changes between two attempts gains nothing.
//     Environment variables cannot put a proxy in between.
//   - What a server says is bounded (32 KiB of headers, 4 KiB of body) and made storable. Reason phrases are not used.
//   - No secret is in a Result or an error: neither the endpoint's secret nor its URL's path, query or credentials.
//
// # The client
//
// This package has an HTTP/1.1 client of its own (client.go), made for one POST at a time. The goroutine of an attempt writes the request,
// without TLS by one system call, and reads the answer itself. It has no goroutine of its own, but for one that sends a body of more than 32 KiB.
//
//	webhook.go   Attempt: what is sent how often, and what came of it
//	request.go   Request -> bytes, with both signatures
//	client.go    a kept connection or a fresh one, and once more on a fresh one
//	idle.go      the connections between two attempts
//	dial.go      DNS and connect, through the guard
//	conn.go      one exchange: write, read the head, read what is worth it of the body
//	answer.go    bytes -> status, headers, body (RFC 9112), strictly
//
// What it does as servers need it:
//
//   - A connection is kept behind an answer that has ended as it said, with nothing behind it. Chunks beside a length, chunks
//     of HTTP/1.0, a body behind a 204 and a body above 4 KiB end the connection. A head that is malformed is no answer: lengths that
//     differ, a blank before a colon, codings other than chunked.
//   - A kept connection is used for at most a minute from when it was opened, so that a name that moves is followed; for as long as
//     the server says in Keep-Alive, less a second (half of a time below two); and only if a look at it finds neither its end nor bytes.
//   - If it ends all the same before a status line comes, or what comes is none, or 408 and the end, the request goes once more, on a
//     fresh connection. A server that does so three times in a row gets fresh connections for a minute.
//   - A server may answer before it has read a long request: its status counts. The rest is then sent for a second more if that was 2xx,
//     and not at all otherwise.
//   - The rest of an answer is waited for: 50 ms after a 2xx, 100 ms after another status, whose body the log shows.
//   - At most MaxIdlePerHost and MaxIdle connections are kept, those that were used last. One takes 3 KiB, and 12 KiB over TLS.
//
// Command make differences compares it with net/http: in the zoo, and over 100,000 generated answers.
//
// # Addresses
//
// Each row stands above the rows that follow it. The guard is the security boundary; CheckURL says the same earlier,
// as far as the text of a URL can tell, so that a person gets a clear sentence.
//
//	never        link-local, cloud metadata (also the public 168.63.129.16 of Azure), multicast, broadcast, unspecified,
//	             and IPv6 that carries an IPv4 address (NAT64, 6to4, Teredo, SIIT, IPv4-compatible): whatever
//	             network.allow_networks says
//	allowed      what network.allow_networks covers
//	refused      the host's own addresses and the database's (WebhookConfig.DenyAddrs)
//	refused      IPv4 of the IANA special-purpose registry: loopback, private, shared, documentation, reserved, ...
//	refused      IPv6 outside 2000::/3, and the special-purpose ranges inside it: loopback, unique local, ...
//	allowed      every other address
//
// IPv4-mapped IPv6 addresses are judged as the IPv4 address, and zones are ignored.
//
// # Classes
//
// A failure has a Class, a stable word for programs, and an Error, a sentence for people.
//
//	invalid_url         CheckURL refuses the URL
//	invalid_secret      CheckSecret refuses the secret
//	invalid_event_id    the event's id cannot be sent in a header, or has a dot
//	blocked_address     the address policy refuses the URL's address, or one its host name resolves to
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
// Standard Webhooks signs id, timestamp and body joined by dots. Its specification says of the id that it must not be the user's, or
// at the very least not have a dot: whoever chooses such an id has us sign a request of another id, time and body. Receivers
// read timestamps in many ways ("17-x" is 17 in some languages), so any dot is refused. Such an event fails at once for all endpoints,
// and counts for none. The ids that the outbox makes have no dot.
//
// # Goroutines
//
// Questions to the resolver have one each, for seven seconds at most. That of a long request ends with its attempt. A timer closes idle
// connections; Close stops it and closes all of them.
package sink
