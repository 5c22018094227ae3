package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os/exec"
	"regexp"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/agent/config"
)

const (
	// consoleTimeout is how long the running agent may take for an answer.
	consoleTimeout = 10 * time.Second
	// maxConsoleAnswer bounds what is read of it, in bytes.
	maxConsoleAnswer = 16 << 10
)

// consolePath matches the path of a link that works once.
var consolePath = regexp.MustCompile(`^/console/link/[A-Za-z0-9_-]{20,100}$`)

// consoleLink is the answer of the command console, and of the agent that it asks.
type consoleLink struct {
	URL     string    `json:"url"`
	Expires time.Time `json:"expires"`
}

func (a *app) consoleCommand() *cobra.Command {
	var address string
	var open bool
	cmd := &cobra.Command{
		Use:   "console",
		Short: "Print an address that opens the console, signed in",
		Long: `console asks the running agent at admin.listen for a link to its console, with admin.token of the configuration. The link
signs in once, within a minute; the session lasts 8 hours. A browser keeps a session only of an https address or of its own
machine: for an agent on another machine give the https address of the proxy in front of it, or open a tunnel first
(ssh -L 8480:127.0.0.1:8480 HOST).`,
		Example: `  webhook-agent console
  webhook-agent console --open
  webhook-agent console --address https://webhooks.internal.example.com`,
		Args: noArguments,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if address == "" {
				return nil
			}
			u, err := url.Parse(address)
			if err != nil || u.Host == "" || u.User != nil || (u.Scheme != "https" && u.Scheme != "http") || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" {
				return usagef(cmd, "--address must be an address without a path, such as https://webhooks.example.com")
			}
			if u.Scheme == "http" && !isLoopback(u.Hostname()) {
				return usagef(cmd, "--address is plain http to another machine, which would see the token; use its https address, or a tunnel and http://127.0.0.1:PORT")
			}
			address = u.Scheme + "://" + u.Host
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.config()
			if err != nil {
				return err
			}
			if cfg.Admin.Token.IsZero() {
				return errors.New("no link: admin.token is not set, so nobody can sign in; make one with openssl rand -hex 32, set it, and restart the agent")
			}
			asked := address
			if asked == "" {
				asked = "http://" + localAddress(cfg.Admin.Listen)
			}
			link, err := askForLink(cmd.Context(), asked, cfg.Admin.Token.Reveal())
			if err != nil {
				return err
			}
			return a.showLink(cmd.Context(), link, open)
		},
	}
	cmd.Flags().StringVar(&address, "address", "", "the `URL` of the agent (default that of admin.listen)")
	cmd.Flags().BoolVar(&open, "open", false, "open the address in a browser as well")
	return cmd
}

// localAddress returns where this machine reaches an address that an agent listens at.
func localAddress(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	if addr, err := netip.ParseAddr(host); host == "" || err == nil && addr.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// isLoopback reports whether a host is this machine.
func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// askForLink asks the agent at an address for a link that works once.
func askForLink(ctx context.Context, address, token string) (consoleLink, error) {
	ctx, cancel := context.WithTimeout(ctx, consoleTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address+"/console/link", nil)
	if err != nil {
		return consoleLink{}, fmt.Errorf("no link: %s is no address: %w", config.Quoted(address), err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	client := &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true}, // no proxy of the environment sees the token
		// Another address would get the token.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(request)
	if err != nil {
		if cause, ok := errors.AsType[*url.Error](err); ok {
			err = cause.Err
		}
		return consoleLink{}, fmt.Errorf("no link: no agent answers at %s (%w); start it with webhook-agent run, or name another with --address", address, err)
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusUnauthorized:
		return consoleLink{}, fmt.Errorf("no link: the agent at %s has another admin.token than this configuration; restart it, or use its configuration (--config)", address)
	case http.StatusTooManyRequests:
		return consoleLink{}, fmt.Errorf("no link: too many links of the agent at %s wait to be used; try again in a minute", address)
	default:
		return consoleLink{}, fmt.Errorf("no link: what answers at %s has no console (status %d); name the agent's admin.listen with --address, and see that it is of this version", address, response.StatusCode)
	}
	var link consoleLink
	text, err := io.ReadAll(io.LimitReader(response.Body, maxConsoleAnswer))
	if err == nil {
		err = json.Unmarshal(text, &link)
	}
	u, parseErr := url.Parse(link.URL)
	if err != nil || parseErr != nil || !consolePath.MatchString(u.Path) {
		return consoleLink{}, fmt.Errorf("no link: what answers at %s is no webhook-agent; name the agent's admin.listen with --address", address)
	}
	// The agent may know itself by another name, which this machine cannot reach.
	link.URL = address + u.Path
	return link, nil
}

// showLink prints a link, and opens it if the flag says so.
func (a *app) showLink(ctx context.Context, link consoleLink, open bool) error {
	out := a.printer()
	if out.asJSON {
		if err := out.json(link); err != nil {
			return err
		}
	} else {
		out.line("%s", link.URL)
		u, err := url.Parse(link.URL)
		if err == nil && u.Scheme == "http" && !isLoopback(u.Hostname()) {
			fmt.Fprintf(a.stderr, "A browser keeps no session of this address: open it through a tunnel (ssh -L %s:%s HOST) as http://127.0.0.1:%s%s, or give --address https://...\n",
				u.Port(), u.Host, u.Port(), u.Path)
		}
	}
	if !open {
		return nil
	}
	opener := "xdg-open"
	if runtime.GOOS == "darwin" {
		opener = "open"
	}
	if output, err := exec.CommandContext(ctx, opener, link.URL).CombinedOutput(); err != nil {
		return fmt.Errorf("no browser was opened (%s: %w %s); open the address yourself", opener, err, config.Quoted(string(output)))
	}
	return nil
}
