package api

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// humaConfig leaves out what huma does by default and this API must not: pages that load scripts from
// elsewhere, $schema links, parameters that are ignored without a word.
func humaConfig(version string) huma.Config {
	c := huma.DefaultConfig("QuintaGo webhook agent", version)
	c.Info.Description = "Endpoints, deliveries and replays of webhooks. Times are in UTC. A list has a cursor, which is opaque. New fields may appear in answers."
	c.Info.License = &huma.License{Name: "Apache 2.0", Identifier: "Apache-2.0"}
	c.Servers = []*huma.Server{{URL: "/"}}
	c.OpenAPIPath, c.DocsPath, c.SchemasPath = "", "", ""
	c.CreateHooks = nil
	c.RejectUnknownQueryParameters = true
	format := huma.Format{Marshal: huma.DefaultJSONFormat.Marshal, Unmarshal: unmarshal}
	c.Formats = map[string]huma.Format{"application/json": format, "json": format}
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"token": {
		Type: "http", Scheme: "bearer",
		Description: "The operator's token (admin.token), or a token of a venue: a JSON Web Token that the app signs with a key of console.keys, with aud webhook-agent, venue, scope read or manage, and exp at most 15 minutes ahead.",
	}}
	c.Security = []map[string][]string{{"token": {}}}
	c.Tags = []*huma.Tag{
		{Name: tagCaller, Description: "Whose token it is, and what the app offers"},
		{Name: tagEndpoints, Description: "Where a venue wants its events sent"},
		{Name: tagDeliveries, Description: "The delivery log: one row for each event and endpoint"},
		{Name: tagEvents, Description: "The events of the outbox"},
		{Name: tagReplays, Description: "Sending again what was missed or failed"},
		{Name: tagOperator, Description: "What the operator alone sees"},
	}
	return c
}

// finishDocument returns the OpenAPI document of all operations, in the form in which people and
// their generators read it.
func (s *Handler) finishDocument() ([]byte, error) {
	document := s.api.OpenAPI()
	nullable(document, "Overview", "leader", "slot")
	describeRepeated(document)
	shareProblems(document)
	openAnswers(document)
	text, err := json.MarshalIndent(document, "", "  ")
	return append(text, '\n'), err
}

// nullable says that fields of a schema which are other schemas may be null. huma has no word for it.
func nullable(document *huma.OpenAPI, schema string, fields ...string) {
	properties := document.Components.Schemas.Map()[schema].Properties
	for _, field := range fields {
		properties[field] = &huma.Schema{AnyOf: []*huma.Schema{properties[field], {Type: "null"}}}
	}
}

// describeRepeated adds the answer to a repeated request, which has the form of the first, to each
// operation with an Idempotency-Key.
func describeRepeated(document *huma.OpenAPI) {
	repeated := strconv.Itoa(http.StatusOK)
	for o := range operations(document) {
		if !slices.ContainsFunc(o.Parameters, func(p *huma.Param) bool { return p.Name == headerIdempotency }) {
			continue
		}
		first := o.Responses[strconv.Itoa(o.DefaultStatus)]
		o.Responses[repeated] = &huma.Response{Description: "The same request was made before; this one has made nothing", Headers: first.Headers, Content: first.Content}
	}
}

// shareProblems replaces the answers of all operations that are no success by references to one of
// each status.
func shareProblems(document *huma.OpenAPI) {
	document.Components.Responses = map[string]*huma.Response{}
	for o := range operations(document) {
		delete(o.Responses, strconv.Itoa(http.StatusInternalServerError)) // of huma; no operation gives it
		for status, response := range o.Responses {
			code, err := strconv.Atoi(status)
			if err != nil || code < http.StatusBadRequest {
				continue
			}
			name := strings.ReplaceAll(http.StatusText(code), " ", "")
			document.Components.Responses[name] = response
			o.Responses[status] = &huma.Response{Ref: "#/components/responses/" + name}
		}
	}
}

// openAnswers takes additionalProperties: false from all schemas but those of requests: a client that
// was generated from the document must not fail at a field that is new.
func openAnswers(document *huma.OpenAPI) {
	schemas := document.Components.Schemas.Map()
	strict := map[string]bool{}
	var mark func(*huma.Schema)
	mark = func(schema *huma.Schema) {
		if schema == nil {
			return
		}
		if name := schema.Ref[strings.LastIndex(schema.Ref, "/")+1:]; name != "" && !strict[name] {
			strict[name] = true
			mark(schemas[name])
		}
		mark(schema.Items)
		for _, property := range schema.Properties {
			mark(property)
		}
	}
	for o := range operations(document) {
		if o.RequestBody != nil {
			for _, body := range o.RequestBody.Content {
				mark(body.Schema)
			}
		}
	}
	for name, schema := range schemas {
		if !strict[name] {
			schema.AdditionalProperties = nil
		}
	}
}

// operations yields all operations of a document.
func operations(document *huma.OpenAPI) func(yield func(*huma.Operation) bool) {
	return func(yield func(*huma.Operation) bool) {
		for _, path := range slices.Sorted(maps.Keys(document.Paths)) {
			item := document.Paths[path]
			for _, o := range []*huma.Operation{item.Get, item.Post, item.Patch, item.Delete} {
				if o != nil && !yield(o) {
					return
				}
			}
		}
	}
}
