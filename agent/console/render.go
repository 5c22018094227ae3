package console

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"

	"github.com/quintago/webhook-agent/agent/access"
)

//go:embed templates/*.html static locales
var files embed.FS

// templates are the pages, by language and name.
type templates struct {
	byLanguage map[string]map[string]*template.Template
	texts      map[string]*texts
}

// allTemplates are those of parseTemplates, which takes a while and gives the same each time.
var allTemplates = sync.OnceValues(parseTemplates)

// parseTemplates parses each page in each language: a page is a file of its own beside what all pages
// share, which begins with an underscore.
func parseTemplates() (*templates, error) {
	names, err := fs.Glob(files, "templates/*.html")
	if err != nil {
		return nil, err
	}
	all := &templates{map[string]map[string]*template.Template{}, map[string]*texts{}}
	for _, language := range languages {
		texts, err := loadTexts(language)
		if err != nil {
			return nil, err
		}
		shared, err := template.New("").Funcs(texts.functions()).ParseFS(files, "templates/_*.html")
		if err != nil {
			return nil, err
		}
		pages := map[string]*template.Template{}
		for _, name := range names {
			page := strings.TrimSuffix(path.Base(name), ".html")
			if strings.HasPrefix(page, "_") {
				continue
			}
			clone, err := shared.Clone()
			if err != nil {
				return nil, err
			}
			if pages[page], err = clone.ParseFS(files, name); err != nil {
				return nil, err
			}
		}
		all.byLanguage[language], all.texts[language] = pages, texts
	}
	return all, nil
}

// frame is what every page has around its own data.
type frame struct {
	Page     string // the name of its template
	Language string
	Theme    string // light, dark, or "" for the browser's
	// Base begins the paths of the pages that the visitor is on. Venue is "" on operators' pages.
	Base, Venue string
	// Signed reports that somebody has a session, Operator that it is an operator's, and Manage that
	// he may change something.
	Signed, Operator, Manage bool
	// Framed reports that the page stands within the app's page, which has a heading of its own.
	Framed bool
	// Here is the path of the page with its query, without preferences.
	Here    string
	Done    string // the key of a message about what was done, or ""
	Version string
	Data    any
}

// render implements pages, for who has no session.
func (h *Handler) render(w http.ResponseWriter, r *http.Request, status int, page string, data any) {
	h.renderFor(w, r, nil, status, page, data)
}

// problemPage is the data of a page that says what is wrong.
type problemPage struct {
	Status         int
	Reason, Remedy string
}

// refuse implements pages.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, status int, reason, remedy string) {
	var v *visit
	if caller, err := h.door.principal(r, r.PathValue("venue")); err == nil {
		v = &visit{caller: caller, venue: r.PathValue("venue")}
	}
	h.renderFor(w, r, v, status, "problem", problemPage{status, reason, remedy})
}

// renderFor answers with a page as a visitor sees it. v is nil for who has no session.
func (h *Handler) renderFor(w http.ResponseWriter, r *http.Request, v *visit, status int, page string, data any) {
	f := frame{Page: page, Language: languageOf(r), Theme: themeOf(r), Base: Prefix, Framed: framed(r), Here: here(r), Version: h.cfg.Version, Data: data}
	if v != nil {
		f.Signed, f.Operator, f.Manage = true, v.caller.Role() == access.RoleOperator, v.caller.MayManage()
		f.Base, f.Venue = basePath(v.venue), v.venue
		if r.Method == http.MethodGet {
			f.Done = r.URL.Query().Get("done")
		}
	}
	var b bytes.Buffer
	if err := h.pages.byLanguage[f.Language][page].ExecuteTemplate(&b, "layout", f); err != nil {
		h.cfg.Log.Error("a page of the console cannot be made", "page", page, "error", err)
		http.Error(w, "this page cannot be made; the operator finds the reason in the agent's log", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	write(w, r, status, b.Bytes())
}

// here returns the path of a page with its query, for links that change a preference. After a form it
// is "": the page cannot be asked for again.
func here(r *http.Request) string {
	if r.Method != http.MethodGet {
		return ""
	}
	query := r.URL.Query()
	for _, name := range []string{"lang", "theme", "done"} {
		query.Del(name)
	}
	u := url.URL{Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: query.Encode()}
	return u.String()
}

// leastCompressed is the size below which an answer is not compressed, in bytes.
const leastCompressed = 600

// fastest compresses in the least time: many pages may be open beside the deliveries.
func fastest(w io.Writer) *gzip.Writer {
	z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // which is a level
	return z
}

var compressors = sync.Pool{New: func() any { return fastest(io.Discard) }}

// write writes an answer, compressed if the browser takes that.
func write(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	header := w.Header()
	header.Add("Vary", "Accept-Encoding")
	if len(body) >= leastCompressed && acceptsGzip(r) {
		var b bytes.Buffer
		z, _ := compressors.Get().(*gzip.Writer)
		z.Reset(&b)
		_, _ = z.Write(body) // to memory
		_ = z.Close()
		compressors.Put(z)
		body = b.Bytes()
		header.Set("Content-Encoding", "gzip")
	}
	header.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the visitor may be gone
}

// acceptsGzip reports whether a request takes a compressed answer. A quality of zero is nothing that a
// browser sends.
func acceptsGzip(r *http.Request) bool {
	for _, part := range strings.Split(strings.Join(r.Header.Values("Accept-Encoding"), ","), ",") {
		if name, q, _ := strings.Cut(part, ";"); strings.TrimSpace(name) == "gzip" {
			return strings.TrimSpace(q) != "q=0"
		}
	}
	return false
}

// staticPath begins the paths of static files. A hash of all files follows, so that a browser may keep
// them for ever, and a script finds another beside it.
const staticPath = Prefix + "/static/"

// asset is a static file.
type asset struct {
	kind string
	body []byte
}

// assets are the static files by name, and assetHash is that of all of them.
var assets, assetHash = loadAssets()

func loadAssets() (all map[string]asset, hash string) {
	all = map[string]asset{}
	sum := sha256.New()
	list, _ := fs.ReadDir(files, "static") // it is embedded
	for _, entry := range list {
		body, _ := files.ReadFile("static/" + entry.Name())
		all[entry.Name()] = asset{mime.TypeByExtension(path.Ext(entry.Name())), body}
		fmt.Fprintf(sum, "%s %d ", entry.Name(), len(body))
		_, _ = sum.Write(body)
	}
	return all, hex.EncodeToString(sum.Sum(nil)[:6])
}

// assetURL returns the path of a static file.
func assetURL(name string) (string, error) {
	if _, ok := assets[name]; !ok {
		return "", fmt.Errorf("there is no static file %s", name)
	}
	return staticPath + assetHash + "/" + name, nil
}

// serveStatic needs no session: the files are the same for everybody.
func serveStatic(w http.ResponseWriter, r *http.Request) {
	a, ok := assets[r.PathValue("name")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", a.kind)
	if r.PathValue("hash") == assetHash { // else the page is of another version of the agent
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	write(w, r, http.StatusOK, a.body)
}
