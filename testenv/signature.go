package testenv

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// timestampTolerance is the largest error of a sender's clock. The Standard Webhooks libraries use
// the same.
const timestampTolerance = 5 * time.Minute

// VerifyQuintago checks the value of X-Quintago-Signature (or of X-Quintago-Signature-Previous) as
// the example in QuintaGo's help pages does: the whole text must be "sha256=" and the hexadecimal
// HMAC-SHA256 of the body. It is written from that page and not from package sink, so that each of
// the two checks the other.
func VerifyQuintago(signature string, body []byte, secret string) error {
	if signature == "" {
		return errors.New("no X-Quintago-Signature")
	}
	if !hmac.Equal([]byte(signature), []byte("sha256="+hex.EncodeToString(mac([]byte(secret), body)))) {
		return errors.New("X-Quintago-Signature does not match")
	}
	return nil
}

// VerifyStandard checks the headers of Standard Webhooks as its specification says
// (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md): one
// of the v1 signatures must match id, timestamp and body, and the timestamp must be within five
// minutes of now.
func VerifyStandard(header http.Header, body []byte, secret string, now time.Time) error {
	id, timestamp := header.Get("Webhook-Id"), header.Get("Webhook-Timestamp")
	if id == "" {
		return errors.New("no Webhook-Id")
	}
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return fmt.Errorf("Webhook-Timestamp %q is no number of seconds", timestamp)
	}
	if off := now.Sub(time.Unix(seconds, 0)).Abs(); off > timestampTolerance {
		return fmt.Errorf("Webhook-Timestamp is %s off", off)
	}
	key := []byte(secret)
	if encoded, ok := strings.CutPrefix(secret, "whsec_"); ok {
		if key, err = base64.StdEncoding.DecodeString(encoded); err != nil {
			// The text must not hold the secret.
			return errors.New("the part of the secret after whsec_ is not base64")
		}
	}
	want := mac(key, []byte(id+"."+timestamp+"."), body)
	for signature := range strings.FieldsSeq(header.Get("Webhook-Signature")) {
		encoded, ok := strings.CutPrefix(signature, "v1,")
		if got, err := base64.StdEncoding.DecodeString(encoded); ok && err == nil && hmac.Equal(got, want) {
			return nil
		}
	}
	return errors.New("Webhook-Signature does not match")
}

func mac(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, part := range parts {
		h.Write(part)
	}
	return h.Sum(nil)
}
