package sink

import (
	"crypto/hmac"
	"crypto/sha256"
	"sync"
	"testing"
)

// FuzzMac compares mac with the standard library's HMAC, for any key and text, also while another
// mac is in use.
func FuzzMac(f *testing.F) {
	for _, length := range []int{0, 1, 63, 64, 65, 200} {
		f.Add(make([]byte, length), []byte("text"), []byte("more"))
	}
	f.Fuzz(func(t *testing.T, key, text, more []byte) {
		want := hmac.New(sha256.New, key)
		want.Write(text)
		want.Write(more)
		m := newMac(key)
		m.Write(text)
		other := newMac(text)
		other.Write(key)
		_ = other.end()
		m.Write(more)
		if got := m.end(); !hmac.Equal(got[:], want.Sum(nil)) {
			t.Fatalf("key %q, text %q and %q: %x", key, text, more, got)
		}
		if m.pad != [sha256.BlockSize]byte{} {
			t.Fatal("the key is left behind")
		}
	})
}

func TestMac_IsUsedByManyAtOnce(t *testing.T) {
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			key := []byte{byte(n)}
			want := hmac.New(sha256.New, key)
			want.Write(key)
			for range 1000 {
				m := newMac(key)
				m.Write(key)
				if got := m.end(); !hmac.Equal(got[:], want.Sum(nil)) {
					t.Error("another hash")
					return
				}
			}
		})
	}
	all.Wait()
}
