# A static binary, the roots of trust and nothing else, run as a user that owns nothing.
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false \
    -ldflags "-s -w -X github.com/quintago/webhook-agent/agent/cli.version=${VERSION}" -o /webhook-agent .

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /webhook-agent /webhook-agent
USER 65532:65532
ENTRYPOINT ["/webhook-agent"]
CMD ["run"]
