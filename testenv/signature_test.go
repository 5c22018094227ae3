package testenv

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// The signatures below come from openssl: printf '%s' BODY | openssl dgst -sha256 -hmac SECRET.
const (
	goldenBody   = `{"id":"evt_1","type":"lead.created","created":"2025-05-10T14:32:00Z","venue":"venue_1","data":{"guests":120}}`
	goldenSecret = "whsec_bm90IGEgcmVhbCBzZWNyZXQ="
	goldenHex    = "sha256=fea468fb99739a7c6678e95826881088a34853200f4d1f58f7bd65aa7e9a0852"
	goldenTime   = 1746887520
	// This is the signature of "evt_1.1746887520.BODY" with the key "plain words".
	goldenPlain = "v1,p269ObI3MHvgKvqpVxQLybg/ZZq2UZDxdSigtVbAdGw="
)

func TestVerifyQuintago_AcceptsOnlyTheSignatureOfTheseBytes(t *testing.T) {
	if err := VerifyQuintago(goldenHex, []byte(goldenBody), goldenSecret); err != nil {
		t.Errorf("refuses a valid signature: %v", err)
	}
	for name, c := range map[string]struct{ signature, body, secret string }{
		"missing":              {"", goldenBody, goldenSecret},
		"other secret":         {goldenHex, goldenBody, goldenSecret + "x"},
		"other body":           {goldenHex, goldenBody + "\n", goldenSecret},
		"no sha256= before it": {strings.TrimPrefix(goldenHex, "sha256="), goldenBody, goldenSecret},
		"upper case":           {strings.ToUpper(goldenHex), goldenBody, goldenSecret},
		"cut short":            {goldenHex[:len(goldenHex)-2], goldenBody, goldenSecret},
	} {
		if VerifyQuintago(c.signature, []byte(c.body), c.secret) == nil {
			t.Errorf("%s: accepts an invalid signature", name)
		}
	}
}

func TestVerifyStandard_AcceptsOnlyTheSignatureOfIdTimestampAndBody(t *testing.T) {
	type request struct {
		id, timestamp, signature, body, secret string
		now                                    int64
	}
	// The first is the test vector of the Standard Webhooks libraries.
	published := request{
		"msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
		`{"test": 2432232314}`, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 1614265330,
	}
	plain := request{"evt_1", "1746887520", goldenPlain, goldenBody, "plain words", goldenTime}
	with := func(r request, change func(r *request)) request {
		change(&r)
		return r
	}
	for name, c := range map[string]struct {
		request
		valid bool
	}{
		"published vector":            {published, true},
		"secret used as written":      {plain, true},
		"second of two signatures":    {with(plain, func(r *request) { r.signature = "v1,AAAA " + r.signature }), true},
		"five minutes late":           {with(plain, func(r *request) { r.now += 300 }), true},
		"more than five minutes late": {with(plain, func(r *request) { r.now += 301 }), false},
		"from the future":             {with(plain, func(r *request) { r.now -= 301 }), false},
		"no id":                       {with(plain, func(r *request) { r.id = "" }), false},
		"other id":                    {with(plain, func(r *request) { r.id = "evt_2" }), false},
		"other timestamp":             {with(plain, func(r *request) { r.timestamp = "1746887521" }), false},
		"no timestamp":                {with(plain, func(r *request) { r.timestamp = "" }), false},
		"other body":                  {with(plain, func(r *request) { r.body += " " }), false},
		"other secret":                {with(plain, func(r *request) { r.secret = "plain word" }), false},
		"secret that is not base64":   {with(published, func(r *request) { r.secret = "whsec_*" }), false},
		"no signature":                {with(plain, func(r *request) { r.signature = "" }), false},
		"another version":             {with(plain, func(r *request) { r.signature = "v1a" + r.signature[2:] }), false},
		"without a version":           {with(plain, func(r *request) { r.signature = r.signature[3:] }), false},
	} {
		header := http.Header{}
		header.Set("Webhook-Id", c.id)
		header.Set("Webhook-Timestamp", c.timestamp)
		header.Set("Webhook-Signature", c.signature)
		err := VerifyStandard(header, []byte(c.body), c.secret, time.Unix(c.now, 0))
		if (err == nil) != c.valid {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), c.secret) {
			t.Errorf("%s: the error holds the secret: %v", name, err)
		}
	}
}
