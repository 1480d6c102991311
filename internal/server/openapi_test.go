package server_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/postgres"
	"auditsink/internal/query"
	"auditsink/internal/server"
)

// description is an OpenAPI document, as far as the tests look at it.
type description struct {
	OpenAPI    string
	Paths      map[string]map[string]operation
	Components struct{ Schemas map[string]schema }
}

type operation struct {
	Security   *[]map[string][]string
	Parameters []struct {
		Name, In string
		Required bool
		Schema   schema
	}
	RequestBody *struct {
		Content map[string]struct{ Schema schema }
	}
	Responses map[string]struct {
		Content map[string]struct{ Schema schema }
	}
}

type schema struct {
	Ref                  string `json:"$ref"`
	Type                 any    // a name, or a list of them
	Properties           map[string]schema
	Required             []string
	AdditionalProperties any // false, or a schema
	Items                *schema
	Enum                 []string
	Format               string
}

// conformance holds answers against a description.
type conformance struct {
	*testing.T
	description
	seen map[string]bool // statuses of operations, and properties of schemas that had a value
}

// check holds a value against a schema; name is what the schema is called.
func (c *conformance) check(s schema, name string, v any) {
	c.Helper()
	if s.Ref != "" {
		name = strings.TrimPrefix(s.Ref, "#/components/schemas/")
		named, ok := c.Components.Schemas[name]
		require.True(c, ok, s.Ref)
		s = named
	}
	types, _ := s.Type.([]any)
	if t, ok := s.Type.(string); ok {
		types = []any{t}
	}
	switch v := v.(type) {
	case nil:
		require.Contains(c, types, "null", name)
	case bool:
		require.Contains(c, types, "boolean", name)
	case json.Number:
		_, err := strconv.ParseInt(v.String(), 10, 64)
		require.True(c, slices.Contains(types, "number") || err == nil && slices.Contains(types, "integer"), "%s: %s isn't %v", name, v, types)
	case string:
		require.Contains(c, types, "string", name)
		if len(s.Enum) > 0 {
			require.Contains(c, s.Enum, v, name)
		}
		if s.Format == "date-time" {
			_, err := time.Parse(time.RFC3339Nano, v)
			require.NoError(c, err, name)
		}
	case []any:
		require.Contains(c, types, "array", name)
		for _, item := range v {
			c.check(*s.Items, name+"[]", item)
		}
	case map[string]any:
		require.Contains(c, types, "object", name)
		if s.Properties == nil {
			return // any object
		}
		require.Equal(c, false, s.AdditionalProperties, "%s leaves open what else it has", name)
		for _, required := range s.Required {
			require.Contains(c, v, required, name)
		}
		for property, value := range v {
			described, ok := s.Properties[property]
			require.True(c, ok, "%s has %q, which isn't described", name, property)
			c.check(described, name+"."+property, value)
			if value != nil {
				c.seen[name+"."+property] = true
			}
		}
	}
}

// answered holds an answer against the description.
func (c *conformance) answered(method, path string, a answer) {
	c.Helper()
	op, ok := c.Paths[path][strings.ToLower(method)]
	require.True(c, ok, "%s %s isn't described", method, path)
	status := strconv.Itoa(a.status)
	response, ok := op.Responses[status]
	require.True(c, ok, "%s %s answers %s, which isn't described: %s", method, path, status, a.body)
	c.seen[method+" "+path+" "+status] = true
	mediaType, _, _ := strings.Cut(a.header.Get("Content-Type"), ";")
	content, ok := response.Content[mediaType]
	require.True(c, ok, "%s %s %s comes as %q, which isn't described", method, path, status, mediaType)
	c.seen[method+" "+path+" "+status+" "+mediaType] = true
	if !strings.HasSuffix(mediaType, "json") || mediaType == "application/x-ndjson" {
		return
	}
	d := json.NewDecoder(strings.NewReader(a.body))
	d.UseNumber()
	var v any
	require.NoError(c, d.Decode(&v))
	c.check(content.Schema, path, v)
}

// TestOpenAPI: the description and what is really answered are the same: routes, parameters, statuses, forms, and every property of the JSON, in both directions.
func TestOpenAPI(t *testing.T) {
	b := newBed(t, setup{})
	b.insert("A", 5)
	doc := b.get("", "/v1/openapi.json")
	require.Equal(t, "application/json", doc.header.Get("Content-Type"))
	c := &conformance{T: t, seen: map[string]bool{}}
	require.NoError(t, json.Unmarshal([]byte(doc.body), &c.description))
	require.Equal(t, "3.1.0", c.OpenAPI)

	t.Run("routes", func(t *testing.T) {
		var described, registered []string
		for path, operations := range c.Paths {
			for method, op := range operations {
				described = append(described, fmt.Sprint(strings.ToUpper(method), " ", path, " public:", op.Security != nil && len(*op.Security) == 0))
			}
		}
		for _, r := range server.Routes() {
			registered = append(registered, fmt.Sprint(r.Method, " ", r.Path, " public:", r.Public))
		}
		require.ElementsMatch(t, registered, described)
	})

	t.Run("parameters", func(t *testing.T) {
		var names []string
		for _, p := range c.Paths["/v1/events"]["get"].Parameters {
			if p.In != "query" {
				continue
			}
			names = append(names, p.Name)
			require.False(t, p.Required)
			for _, value := range p.Schema.Enum {
				require.Equal(t, http.StatusOK, b.get(tokenA, b.events(p.Name, value)).status, "%s=%s", p.Name, value)
			}
			if p.Schema.Enum != nil {
				require.Equal(t, http.StatusBadRequest, b.get(tokenA, b.events(p.Name, "another")).status, p.Name)
			}
		}
		require.Equal(t, query.Parameters(), names)
	})

	id := b.page(tokenA, b.events("limit", "1")).Events[0].ID
	event := fmt.Sprintf("/v1/events/%d", id)
	ask := func(b *bed, method, path, token, target string, header http.Header, body string) {
		t.Helper()
		r := b.request(method, token, target, header)
		if body != "" {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		}
		c.answered(method, path, b.do(r))
	}
	t.Run("answers", func(*testing.T) {
		get := func(path, token, target string) { t.Helper(); ask(b, http.MethodGet, path, token, target, nil, "") }
		get("/v1/events", tokenA, b.events("limit", "2", "count", "true"))
		get("/v1/events", tokenA, b.events("format", "ndjson"))
		get("/v1/events", tokenA, b.events("format", "csv"))
		get("/v1/events", tokenA, "/v1/events?x=y")
		ask(b, http.MethodGet, "/v1/events", tokenA, "/v1/events", http.Header{"Accept": {"image/png"}}, "")
		get("/v1/events/{id}", tokenA, event)
		get("/v1/events/{id}", tokenA, event+"?x=y")
		get("/v1/events/{id}", tokenB, event)
		get("/v1/openapi.json", "", "/v1/openapi.json")
		for _, path := range []string{"/v1/performance", "/v1/log-level"} {
			get(path, tokenAll, path)
			get(path, tokenAll, path+"?x=y")
			get(path, tokenA, path)
		}
		ask(b, http.MethodPut, "/v1/log-level", tokenAll, "/v1/log-level", nil, `{"level":"debug"}`)
		ask(b, http.MethodPut, "/v1/log-level", tokenAll, "/v1/log-level", nil, `{"level":"loud"}`)
		ask(b, http.MethodPut, "/v1/log-level", tokenA, "/v1/log-level", nil, `{"level":"debug"}`)
		for _, r := range server.Routes() {
			if !r.Public {
				ask(b, r.Method, r.Path, "", strings.ReplaceAll(r.Path, "{id}", "1"), nil, "")
			}
		}
	})
	t.Run("the machine alone", func(t *testing.T) {
		b := newBed(t, setup{url: b.url, noTokens: true})
		for _, r := range server.Routes() {
			if !r.Public {
				ask(b, r.Method, r.Path, "", strings.ReplaceAll(r.Path, "{id}", "1"), http.Header{"Forwarded": {"for=1.2.3.4"}}, "")
			}
		}
	})
	t.Run("nothing to show", func(t *testing.T) {
		b := newBed(t, setup{url: b.url, server: func(o *server.Options) { o.Report, o.Level = nil, nil }})
		ask(b, http.MethodGet, "/v1/performance", tokenAll, "/v1/performance", nil, "")
		ask(b, http.MethodGet, "/v1/log-level", tokenAll, "/v1/log-level", nil, "")
		ask(b, http.MethodPut, "/v1/log-level", tokenAll, "/v1/log-level", nil, `{"level":"debug"}`)
	})
	t.Run("no database", func(t *testing.T) {
		b := newBed(t, setup{url: "postgres://nobody@127.0.0.1:1/none", server: func(o *server.Options) {
			o.Report = func(context.Context) (any, error) {
				return nil, &net.OpError{Op: "dial", Err: errors.New("refused")}
			}
		}})
		ask(b, http.MethodGet, "/v1/events", tokenA, "/v1/events", nil, "")
		ask(b, http.MethodGet, "/v1/events", tokenA, "/v1/events?format=csv", nil, "")
		ask(b, http.MethodGet, "/v1/events/{id}", tokenA, "/v1/events/1", nil, "")
		ask(b, http.MethodGet, "/v1/performance", tokenAll, "/v1/performance", nil, "")
	})
	t.Run("too slow", func(t *testing.T) {
		locked := newBed(t, setup{url: b.url, reader: func(o *query.Options) { o.Timeout = 100 * time.Millisecond }, server: func(o *server.Options) {
			o.Report = func(context.Context) (any, error) { return nil, fmt.Errorf("report: %w", query.ErrTimeout) }
		}})
		unlock := locked.lock()
		ask(locked, http.MethodGet, "/v1/events", tokenA, "/v1/events", nil, "")
		ask(locked, http.MethodGet, "/v1/events/{id}", tokenA, "/v1/events/1", nil, "")
		ask(locked, http.MethodGet, "/v1/performance", tokenAll, "/v1/performance", nil, "")
		unlock()
	})
	t.Run("an old client", func(*testing.T) {
		a := old(t, b, "/v1/events?format=ndjson")
		c.answered(http.MethodGet, "/v1/events", a)
	})
	t.Run("an error of no known class", func(t *testing.T) {
		broken := newBed(t, setup{url: b.url, server: func(o *server.Options) {
			o.Report = func(context.Context) (any, error) { return math.NaN(), nil }
		}})
		broken.exec(`ALTER TABLE audit_log RENAME TO hidden`)
		broken.exec(`CREATE FUNCTION fails() RETURNS SETOF hidden LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'it is secret'; END $$`)
		broken.exec(`CREATE VIEW audit_log AS SELECT * FROM fails()`)
		for path, target := range map[string]string{"/v1/events": broken.events(), "/v1/events/{id}": "/v1/events/1"} {
			a := broken.get(tokenA, target)
			require.NotContains(t, a.body, "secret")
			c.answered(http.MethodGet, path, a)
		}
		ask(broken, http.MethodGet, "/v1/performance", tokenAll, "/v1/performance", nil, "")
		require.NotEmpty(t, broken.log.FilterMessage("a read failed").All())
	})

	// And what is described is answered somewhere above.
	for path, operations := range c.Paths {
		for method, op := range operations {
			for status, response := range op.Responses {
				for mediaType := range response.Content {
					require.True(t, c.seen[strings.ToUpper(method)+" "+path+" "+status+" "+mediaType], "no answer was %s %s %s as %s", method, path, status, mediaType)
				}
			}
		}
	}
	for name, s := range c.Components.Schemas {
		if name == "Report" { // TestOpenAPIReport knows all of it
			continue
		}
		for _, property := range slices.Sorted(maps.Keys(s.Properties)) {
			require.True(t, c.seen[name+"."+property], "no answer had %s.%s", name, property)
		}
	}
}

// old asks by HTTP/1.0.
func old(t *testing.T, b *bed, path string) answer {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", b.server.Addr())
	require.NoError(t, err)
	_, err = io.WriteString(conn, "GET "+path+" HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer "+tokenA+"\r\n\r\n")
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, errors.Join(err, resp.Body.Close(), conn.Close()))
	return answer{resp.StatusCode, resp.Header, string(body)}
}

// lock keeps everybody from the table until the function it returns is called.
func (b *bed) lock() (unlock func()) {
	b.Helper()
	pool, err := postgres.Open(b.Context(), postgres.Options{URL: b.url})
	require.NoError(b, err)
	tx, err := pool.Begin(b.Context())
	require.NoError(b, err)
	_, err = tx.Exec(b.Context(), `LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE`)
	require.NoError(b, err)
	return func() {
		b.Helper()
		require.NoError(b, tx.Rollback(b.Context()))
		pool.Close()
	}
}
