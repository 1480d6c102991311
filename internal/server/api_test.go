package server_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/query"
)

// TestPages: by following the link, whoever asks gets every event of theirs once, in order, though no range was given to later requests but by the link.
func TestPages(t *testing.T) {
	b := newBed(t, setup{})
	b.insert("A", 100)
	b.insert("B", 100)
	b.insert("", 100)
	for _, c := range []struct {
		token string
		want  int
	}{{tokenA, 100}, {tokenBoth, 200}, {tokenAll, 300}, {tokenNone, 0}} {
		for _, order := range []string{"asc", "desc"} {
			path := b.events("order", order, "limit", "37", "count", "true")
			seen := map[int64]bool{}
			var last string
			for first := true; path != ""; first = false {
				a := b.get(c.token, path)
				require.Equal(t, http.StatusOK, a.status, a.body)
				require.Equal(t, "application/json", a.header.Get("Content-Type"))
				require.Equal(t, "private, no-store", a.header.Get("Cache-Control"))
				require.Equal(t, "nosniff", a.header.Get("X-Content-Type-Options"))
				require.Empty(t, a.header.Values("Access-Control-Allow-Origin"))
				p := decode[page](t, a.body)
				require.Equal(t, [2]time.Time{b.from, b.to}, [2]time.Time{p.From, p.To})
				if first {
					require.Equal(t, &query.Count{Count: int64(c.want), Exact: true}, p.Count)
				} else {
					require.Nil(t, p.Count)
				}
				for _, e := range p.Events {
					require.False(t, seen[e.ID], "twice")
					seen[e.ID] = true
					stamp := strings.TrimSuffix(e.Timestamp, "Z")[:23]
					if last != "" {
						require.True(t, (order == "asc") == (last <= stamp) || last == stamp, "%s after %s", stamp, last)
					}
					last = stamp
				}
				require.LessOrEqual(t, len(p.Events), 37)
				link := a.header.Get("Link")
				require.Equal(t, p.Next != nil, link != "")
				if path = ""; link != "" {
					target, rest, ok := strings.Cut(strings.TrimPrefix(link, "<"), ">")
					require.True(t, ok)
					require.Equal(t, `; rel="next"`, rest)
					path = target
					require.Contains(t, path, url.QueryEscape(*p.Next))
				}
			}
			require.Len(t, seen, c.want)
		}
	}
}

// TestDefaultRange: the 24 hours before now, which the answer tells, and by whose link the next page is of the same range.
func TestDefaultRange(t *testing.T) {
	b := newBed(t, setup{})
	now := time.Now().UTC().Truncate(time.Second)
	b.from, b.to = now.Add(-10*time.Minute), now
	if b.from.Month() != now.Month() {
		b.from = now.Truncate(24 * time.Hour)
	}
	b.insert("A", 10)
	a := b.get(tokenA, "/v1/events?limit=4")
	p := decode[page](t, a.body)
	require.Len(t, p.Events, 4)
	require.Equal(t, 24*time.Hour, p.To.Sub(p.From))
	require.False(t, p.To.Before(now))
	require.LessOrEqual(t, p.To.Sub(now), patience)
	target, _, _ := strings.Cut(strings.TrimPrefix(a.header.Get("Link"), "<"), ">")
	next := b.page(tokenA, target)
	require.Len(t, next.Events, 4)
	require.Equal(t, [2]time.Time{p.From, p.To}, [2]time.Time{next.From, next.To})
}

// TestFilters: each parameter chooses by its own column.
func TestFilters(t *testing.T) {
	b := newBed(t, setup{})
	b.insert("A", 9)
	b.insert("B", 9)
	one := b.page(tokenA, b.events("limit", "1")).Events[0]
	other := b.page(tokenB, b.events("limit", "1")).Events[0]
	for name, values := range map[string][2]string{
		"principalId": {*one.PrincipalID, *other.PrincipalID}, "organizationId": {"A", "B"}, "action": {one.Action, other.Action}, "hash": {strings.ToUpper(*one.Hash), *other.Hash},
		"targetResourceType": {*one.TargetResourceType, *other.TargetResourceType}, "targetResourceId": {*one.TargetResourceID, *other.TargetResourceID},
		"correlationId": {*one.CorrelationID, *other.CorrelationID}, "retentionPolicy": {*one.RetentionPolicy, *other.RetentionPolicy},
	} {
		require.NotEqual(t, values[0], values[1])
		for i, organization := range []string{"A", "B"} {
			p := b.page(tokenAll, b.events(name, values[i]))
			require.Len(t, p.Events, 9, name)
			for _, e := range p.Events {
				require.Equal(t, organization, *e.OrganizationID, name)
			}
		}
	}
	require.Len(t, b.page(tokenAll, b.events("status", "success", "dataClassification", "phi")).Events, 18)
	require.Empty(t, b.page(tokenAll, b.events("status", "failure")).Events)
	require.Empty(t, b.page(tokenAll, b.events("dataClassification", "PUBLIC")).Events)
	border := b.from.Add(time.Hour + 24*time.Hour)
	before := b.page(tokenAll, b.events("archivedTo", border.Format(time.RFC3339))).Events
	after := b.page(tokenAll, b.events("archivedFrom", border.Format(time.RFC3339))).Events
	require.NotEmpty(t, before)
	require.NotEmpty(t, after)
	require.Len(t, append(before, after...), 18)
	for _, e := range before {
		require.True(t, e.ArchivedAt.Before(border))
	}
}

// TestEvent: by its ID, alone or with its timestamp as it was shown; the member details as it came.
func TestEvent(t *testing.T) {
	b := newBed(t, setup{})
	b.insert("A", 6)
	for _, e := range b.page(tokenA, b.events()).Events {
		id := strconv.FormatInt(e.ID, 10)
		for _, path := range []string{"/v1/events/" + id, "/v1/events/" + id + "?timestamp=" + url.QueryEscape(e.Timestamp)} {
			a := b.get(tokenA, path)
			require.Equal(t, http.StatusOK, a.status, a.body)
			require.Equal(t, e, decode[query.Event](t, a.body))
		}
		b.refused(http.StatusNotFound, b.request(http.MethodGet, tokenA, "/v1/events/"+id+"?timestamp=2020-01-01T00:00:00Z", nil))
	}
	for _, path := range []string{"/v1/events/x", "/v1/events/1.0", "/v1/events/99999999999999999999"} {
		p, _ := b.refused(http.StatusBadRequest, b.request(http.MethodGet, tokenA, path, nil))
		require.Equal(t, "id", p.Parameter)
	}
	for _, path := range []string{"/v1/events/0", "/v1/events/-1", "/v1/events/" + strconv.FormatInt(1<<62, 10)} {
		b.refused(http.StatusNotFound, b.request(http.MethodGet, tokenA, path, nil))
	}
	for query, parameter := range map[string]string{"timestamp=": "timestamp", "timestamp=x": "timestamp", "timestamp=2026-01-01T00:00:00Z&timestamp=2026-01-01T00:00:00Z": "timestamp", "at=x": "at", "format=csv": "format"} {
		p, _ := b.refused(http.StatusBadRequest, b.request(http.MethodGet, tokenA, "/v1/events/1?"+query, nil))
		require.Equal(t, parameter, p.Parameter)
	}
}

// TestBadQuestions: each is 400 and names the parameter. (All rules of parameters are tested with package query.)
func TestBadQuestions(t *testing.T) {
	b := newBed(t, setup{})
	b.insert("A", 6)
	cursor := *b.page(tokenA, b.events("limit", "2")).Next
	for question, parameter := range map[string]string{
		b.events("offset", "1"):                                     "offset",
		b.events("action", ""):                                      "action",
		b.events() + "&action=a&action=b":                           "action",
		b.events("status", "fine"):                                  "status",
		b.events("dataClassification", "x"):                         "dataClassification",
		b.events("hash", "abc"):                                     "hash",
		b.events("action", "a\x00"):                                 "action",
		b.events("action", "\xff"):                                  "action",
		b.events("action", strings.Repeat("a", 256)):                "action",
		b.events("limit", "1001"):                                   "limit",
		b.events("cursor", "x"):                                     "cursor",
		b.events("cursor", cursor, "order", "asc"):                  "cursor",
		b.events("cursor", cursor, "action", "a"):                   "cursor",
		b.events("cursor", cursor, "format", "csv"):                 "cursor",
		b.events("format", "csv", "status", "fine"):                 "status",
		"/v1/events?from=2026-01-01T00:00:00Z&to=x":                 "to",
		"/v1/events?action=%zz":                                     "",
		"/v1/events?action=a;status=b":                              "",
		"/v1/events?from=0000-01-01T00:00:00Z&to=0000-01-02T00:00Z": "to",
	} {
		p, _ := b.refused(http.StatusBadRequest, b.request(http.MethodGet, tokenA, question, nil))
		require.Equal(t, parameter, p.Parameter, question)
	}
	require.Len(t, b.page(tokenA, b.events("limit", "2", "cursor", cursor)).Events, 2)
}

// TestHead: the headers of GET, without its body; and no export is made for it.
func TestHead(t *testing.T) {
	b := newBed(t, setup{})
	b.insert("A", 6)
	id := b.page(tokenA, b.events("limit", "1")).Events[0].ID
	for _, path := range []string{b.events("limit", "2"), b.events("format", "csv"), b.events("format", "ndjson"), b.events("format", "csv", "status", "none"), fmt.Sprintf("/v1/events/%d", id), "/v1/events/0", "/v1/openapi.json", "/v1/nothing"} {
		get, head := b.get(tokenA, path), b.do(b.request(http.MethodHead, tokenA, path, nil))
		require.Equal(t, get.status, head.status, path)
		require.Empty(t, head.body)
		for _, name := range []string{"Content-Type", "Link", "Content-Disposition", "Cache-Control"} {
			require.Equal(t, get.header.Get(name), head.header.Get(name), "%s %s", path, name)
		}
	}
	require.Equal(t, 2, b.log.FilterMessage("exported").Len())
}

// TestAccept: the format is the parameter's, or else what the client likes best of what there is.
func TestAccept(t *testing.T) {
	b := newBed(t, setup{})
	for accept, want := range map[string]string{
		"": "application/json", "*/*": "application/json", "application/json": "application/json", "application/x-ndjson": "application/x-ndjson", "text/csv": "text/csv; charset=utf-8; header=present",
		"text/html, application/x-ndjson;q=0.5, text/csv;q=0.4": "application/x-ndjson", "application/json;q=0.1, text/csv": "text/csv; charset=utf-8; header=present", "image/png, */*;q=0.1": "application/json",
		"application/json;q=0, text/csv;q=0.001": "text/csv; charset=utf-8; header=present", "rubbish;;;, text/csv": "text/csv; charset=utf-8; header=present",
	} {
		header := http.Header{"Accept": {accept}}
		if accept == "" {
			header = nil
		}
		a := b.do(b.request(http.MethodGet, tokenA, b.events(), header))
		require.Equal(t, http.StatusOK, a.status, a.body)
		require.Equal(t, want, a.header.Get("Content-Type"), accept)
	}
	b.refused(http.StatusNotAcceptable, b.request(http.MethodGet, tokenA, b.events(), http.Header{"Accept": {"image/png"}}))
	a := b.do(b.request(http.MethodGet, tokenA, b.events("format", "ndjson"), http.Header{"Accept": {"image/png"}}))
	require.Equal(t, "application/x-ndjson", a.header.Get("Content-Type"))
}

// TestTokensAreWanted: on every path of /v1, whatever is there, but for the description; and a token that is removed stops working.
func TestTokensAreWanted(t *testing.T) {
	b := newBed(t, setup{})
	for _, path := range []string{"/v1/events", "/v1/events/1", "/v1/performance", "/v1/log-level", "/v1/", "/v1/nothing", "/v1/events/1/2"} {
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions} {
			for authorization, challenge := range map[string]string{
				"": `Bearer realm="auditsink"`, "Basic YTpi": `Bearer realm="auditsink"`, tokenA: `Bearer realm="auditsink"`, "Bearer": `Bearer realm="auditsink", error="invalid_token"`,
				"Bearer token-of-": `Bearer realm="auditsink", error="invalid_token"`, "Bearer " + tokenA + " x": `Bearer realm="auditsink", error="invalid_token"`,
			} {
				r := b.request(method, "", path, nil)
				if authorization != "" {
					r.Header.Set("Authorization", authorization)
				}
				a := b.do(r)
				require.Equal(t, http.StatusUnauthorized, a.status, "%s %s %q", method, path, authorization)
				require.Equal(t, challenge, a.header.Get("WWW-Authenticate"))
			}
		}
	}
	twice := b.request(http.MethodGet, tokenA, "/v1/events", nil)
	twice.Header.Add("Authorization", "Bearer "+tokenA)
	b.refused(http.StatusUnauthorized, twice)
	lower := b.request(http.MethodGet, "", "/v1/events", http.Header{"Authorization": {"bearer " + tokenA}})
	require.Equal(t, http.StatusOK, b.do(lower).status)
	require.Equal(t, http.StatusOK, b.get("", "/v1/openapi.json").status)

	for _, path := range []string{"/v1/performance", "/v1/log-level"} {
		_, header := b.refused(http.StatusForbidden, b.request(http.MethodGet, tokenA, path, nil))
		require.Equal(t, `Bearer realm="auditsink", error="insufficient_scope"`, header.Get("WWW-Authenticate"))
		require.Equal(t, http.StatusOK, b.get(tokenAll, path).status)
	}
	b.refused(http.StatusNotFound, b.request(http.MethodGet, tokenA, "/v1/nothing", nil))
	_, header := b.refused(http.StatusMethodNotAllowed, b.request(http.MethodDelete, tokenA, "/v1/events/1", nil))
	require.Equal(t, "GET, HEAD", header.Get("Allow"))
	_, header = b.refused(http.StatusMethodNotAllowed, b.request(http.MethodPost, tokenAll, "/v1/log-level", nil))
	require.Equal(t, "GET, HEAD, PUT", header.Get("Allow"))
	for _, entry := range b.log.All() {
		require.NotContains(t, fmt.Sprint(entry.Message, entry.ContextMap()), "token-of", "no token in the log")
	}
}

// TestWithoutTokens: this machine may ask for everything, and nobody for somebody else. (Who isn't of this machine is tested with local.)
func TestWithoutTokens(t *testing.T) {
	b := newBed(t, setup{noTokens: true})
	b.insert("A", 3)
	b.insert("", 3)
	require.Len(t, b.page("", b.events()).Events, 6)
	require.Len(t, b.page("any token", b.events()).Events, 6)
	for _, path := range []string{"/v1/events", "/v1/events/1", "/v1/performance", "/v1/log-level", "/v1/nothing"} {
		for _, spoil := range []func(*http.Request){
			func(r *http.Request) { r.Host = "evil.example" },
			func(r *http.Request) { r.Host = "evil.example:" + strings.TrimPrefix(b.server.Addr(), "127.0.0.1:") },
			func(r *http.Request) { r.Header.Set("X-Forwarded-For", "127.0.0.1") },
			func(r *http.Request) { r.Header.Set("forwarded", "for=127.0.0.1") },
			func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
		} {
			r := b.request(http.MethodGet, "", path, nil)
			spoil(r)
			p, _ := b.refused(http.StatusForbidden, r)
			require.Contains(t, p.Detail, "AUDITSINK_TOKENS_FILE")
		}
	}
	r := b.request(http.MethodGet, "", "/v1/openapi.json", nil)
	r.Host = "evil.example"
	require.Equal(t, http.StatusOK, b.do(r).status)
}
