//go:build browser

package browser

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/quintago/webhook-agent/testenv"
)

// programs are the names of Chromium in PATH, in the order of preference.
var programs = []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"}

// errMissing says what to do where there is no Chromium.
var errMissing = errors.New("no Chromium in PATH (" + strings.Join(programs, ", ") + "): install one " +
	"(Debian: apt-get install --no-install-recommends chromium, Ubuntu: snap install chromium, " +
	"macOS: brew install --cask chromium)")

// shared is the Chromium of this test binary.
var shared struct {
	start sync.Once
	ctx   context.Context //nolint:containedctx // of the browser; nil if it did not start
	err   error
}

// chromium returns the context of the browser of this test binary.
func chromium() (context.Context, error) {
	shared.start.Do(func() {
		stop, err := startChromium()
		if err != nil {
			shared.err = err
			return
		}
		testenv.AtEnd(stop)
	})
	return shared.ctx, shared.err
}

// find returns the path of Chromium.
func find() (string, error) {
	for _, name := range programs {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errMissing
}

// startChromium starts the browser of this test binary. stop ends it and removes its profile.
func startChromium() (stop func() error, err error) {
	program, err := find()
	if err != nil {
		return nil, err
	}
	profile, remove, err := testenv.MakeFolder("chromium-")
	if err != nil {
		return nil, fmt.Errorf("make the profile of Chromium: %w", err)
	}
	allocator, end := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program),
		chromedp.UserDataDir(profile),
		chromedp.Env("TZ=UTC", "TMPDIR="+profile),
		chromedp.DisableGPU,
		chromedp.IgnoreCertErrors,
		chromedp.ModifyCmdFunc(tie),
		// The sandbox needs a kernel that lets users make namespaces, which containers do not.
		chromedp.NoSandbox,
		// Nothing leaves this machine.
		chromedp.Flag("host-resolver-rules", "MAP *.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"),
		// The frames of a page are in its process, whatever their origin, so that one connection
		// drives them all. What a frame may do depends on its origin all the same.
		chromedp.Flag("disable-site-isolation-trials", true),
		chromedp.Flag("disable-features", "Translate,IsolateOrigins,site-per-process,IsolateSandboxedIframes"),
		chromedp.Flag("hide-scrollbars", true),
		chromedp.Flag("force-device-scale-factor", "1"),
		chromedp.Flag("font-render-hinting", "none"),
	)...)
	ctx, _ := chromedp.NewContext(allocator)
	if err := chromedp.Do(ctx); err != nil {
		end()
		return nil, errors.Join(fmt.Errorf("start %s: %w", program, err), remove())
	}
	shared.ctx = ctx //nolint:fatcontext // it is set once
	return func() error {
		within, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		// An error says that the browser did not close its tabs in good order. end kills it then.
		_ = chromedp.Cancel(within)
		end()
		return removeProfile(profile, remove)
	}, nil
}

// removeProfile removes the profile of a browser that has ended. Its helper processes end a moment
// later and write until then.
func removeProfile(profile string, remove func() error) error {
	var err error
	for range 100 {
		if err = os.RemoveAll(profile); err == nil {
			return remove()
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.Join(err, remove())
}
