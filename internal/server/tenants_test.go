package server_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/query"
	"auditsink/internal/server"
	"auditsink/internal/testkit"
	"auditsink/metrics"
)

// strangers is what a caller bound to A may know of others from elsewhere, and tries.
type strangers struct {
	events  []query.Event // of B and of no organization
	cursors []string      // of pages of B and of everything
}

// probes asks each route in every way there is. A route that isn't here fails the test: whoever adds one has to say how it could tell of strangers.
var probes = map[string]func(b *bed, s strangers) []string{
	"GET /v1/events": func(b *bed, s strangers) (paths []string) {
		for _, format := range []string{"json", "ndjson", "csv"} {
			for _, order := range []string{"asc", "desc"} {
				paths = append(paths, b.events("format", format, "order", order), b.events("format", format, "order", order, "limit", "3"))
			}
			for _, e := range s.events {
				for name, value := range chosen(e) {
					paths = append(paths, b.events("format", format, name, value))
					if format == "json" {
						paths = append(paths, b.events(name, value, "count", "true"))
					}
				}
			}
			paths = append(paths, b.events("format", format, "organizationId", "B", "status", "success"))
		}
		for _, cursor := range s.cursors {
			paths = append(paths, b.events("cursor", cursor), b.events("limit", "3", "cursor", cursor), b.events("organizationId", "B", "limit", "3", "cursor", cursor))
		}
		return append(paths, "/v1/events", b.events("count", "true"), b.events("count", "true", "organizationId", "B"))
	},
	"GET /v1/events/{id}": func(_ *bed, s strangers) (paths []string) {
		for _, e := range s.events {
			paths = append(paths, fmt.Sprintf("/v1/events/%d", e.ID), fmt.Sprintf("/v1/events/%d?timestamp=%s", e.ID, url.QueryEscape(e.Timestamp)))
		}
		return paths
	},
	"GET /v1/performance":  func(*bed, strangers) []string { return []string{"/v1/performance"} },
	"GET /v1/log-level":    func(*bed, strangers) []string { return []string{"/v1/log-level"} },
	"PUT /v1/log-level":    func(*bed, strangers) []string { return []string{"/v1/log-level"} },
	"GET /v1/openapi.json": func(*bed, strangers) []string { return []string{"/v1/openapi.json"} },
}

// chosen are filters by all that an event holds.
func chosen(e query.Event) map[string]string {
	all := map[string]string{
		"action": e.Action, "principalId": *e.PrincipalID, "hash": *e.Hash, "targetResourceType": *e.TargetResourceType, "targetResourceId": *e.TargetResourceID,
		"correlationId": *e.CorrelationID, "retentionPolicy": *e.RetentionPolicy, "archivedFrom": e.ArchivedAt.Format(time.RFC3339Nano), "archivedTo": e.ArchivedAt.Add(time.Second).Format(time.RFC3339Nano),
		"dataClassification": "PHI", "status": "success",
	}
	if e.OrganizationID != nil {
		all["organizationId"] = *e.OrganizationID
	}
	return all
}

// TestTenants walks all endpoints, and paths that are none, with a token of A: in no answer is anything of B or of no organization, and what is counted or absent tells
// nothing of them either.
func TestTenants(t *testing.T) {
	b := newBed(t, setup{redis: testkit.OwnRedis(t)})
	b.insert("A", 10)
	b.insert("B", 10)
	b.insert("", 10)
	var s strangers
	own := map[int64]bool{}
	for _, e := range b.page(tokenAll, b.events("limit", "1000")).Events { // which are cached, too
		if e.OrganizationID != nil && *e.OrganizationID == "A" {
			own[e.ID] = true
		} else {
			s.events = append(s.events, e)
		}
	}
	require.Len(t, own, 10)
	require.Len(t, s.events, 20)
	for _, token := range []string{tokenB, tokenAll, tokenBoth} {
		for _, question := range []string{b.events("limit", "3"), b.events("limit", "3", "organizationId", "B"), b.events("limit", "3", "order", "asc")} {
			s.cursors = append(s.cursors, *b.page(token, question).Next)
		}
	}

	for _, r := range server.Routes() {
		probe, ok := probes[r.Method+" "+r.Path]
		require.True(t, ok, "%s %s is new: how could it tell of strangers?", r.Method, r.Path)
		paths := probe(b, s)
		require.NotEmpty(t, paths)
		for _, token := range []string{tokenAll, tokenB} { // who may see them asks first, so that the answers are there to be mistaken
			for _, path := range paths {
				b.do(b.request(r.Method, token, path, nil))
			}
		}
		for _, path := range paths {
			methods := []string{r.Method}
			if r.Method == http.MethodGet {
				methods = append(methods, http.MethodHead)
			}
			for _, method := range methods {
				a := b.do(b.request(method, tokenA, path, nil))
				requireNothingOf(t, method+" "+path, a, own)
				if r.Everything {
					require.Equal(t, http.StatusForbidden, a.status)
				}
			}
		}
		t.Logf("%s %s: %d questions", r.Method, r.Path, len(paths))
	}
	for _, path := range []string{"/v1/", "/v1/events/", "/v1/events/B/", "/v1/organizations", "/metrics", "/health", "/healthz", "/readyz", "/"} {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions} {
			requireNothingOf(t, path, b.do(b.request(method, tokenA, path, nil)), own)
		}
	}
	require.Len(t, b.page(tokenA, b.events()).Events, 10, "and what is A's is there")
	sample, err := b.metrics.Sample(time.Now())
	require.NoError(t, err)
	require.Positive(t, sample.Sum("query_cache_requests_total", metrics.Label{Name: "result", Value: "hit"}))
	for _, entry := range b.log.All() {
		require.NotContains(t, fmt.Sprint(entry.Message, entry.ContextMap()), "of-B", "no event content in the log")
	}
}

// requireNothingOf requires that an answer has own events alone, and names nobody else's but where the question did.
func requireNothingOf(t *testing.T, what string, a answer, own map[int64]bool) {
	t.Helper()
	told := a.body
	for name, values := range a.header {
		if name != "Link" { // it repeats the question
			told += name + strings.Join(values, " ")
		}
	}
	for _, marker := range []string{"of-B", "of-nobody"} {
		require.NotContains(t, told, marker, what)
	}
	if a.status != http.StatusOK || a.body == "" {
		require.Contains(t, []int{200, 400, 403, 404, 405}, a.status, what)
		return
	}
	switch mediaType, _, _ := strings.Cut(a.header.Get("Content-Type"), ";"); mediaType {
	case "application/x-ndjson":
		for line := range strings.Lines(a.body) {
			require.True(t, own[decode[query.Event](t, line).ID], what)
		}
	case "application/json":
		if !strings.Contains(what, "/v1/events") {
			return
		}
		p := decode[page](t, a.body)
		for _, e := range p.Events {
			require.True(t, own[e.ID], what)
		}
		if p.Count != nil {
			require.LessOrEqual(t, p.Count.Count, int64(len(own)), what)
			require.Equal(t, len(p.Events) > 0, p.Count.Count > 0, what)
		}
	}
}

// TestStrangersAreNotThere: an event of somebody else is answered as one that doesn't exist, to the byte, by the same work, and as often as one asks.
func TestStrangersAreNotThere(t *testing.T) {
	for name, withCache := range map[string]bool{"cached": true, "not cached": false} {
		t.Run(name, func(t *testing.T) {
			s := setup{}
			if withCache {
				s.redis = testkit.OwnRedis(t)
			}
			b := newBed(t, s)
			b.insert("A", 3)
			b.insert("B", 3)
			b.insert("", 3)
			work := func(path string) (answer, float64, uint64) {
				before, err := b.metrics.Sample(time.Now())
				require.NoError(t, err)
				a := b.get(tokenA, path)
				after, err := b.metrics.Sample(time.Now())
				require.NoError(t, err)
				a.header.Del("Date")
				return a, after.Sum("query_rows_total") - before.Sum("query_rows_total"),
					after.Distribution("query_duration_seconds").Count - before.Distribution("query_duration_seconds").Count
			}
			none := int64(1 << 40)
			for _, e := range b.page(tokenAll, b.events("limit", "1000")).Events {
				if e.OrganizationID != nil && *e.OrganizationID == "A" {
					require.Equal(t, http.StatusOK, b.get(tokenA, fmt.Sprintf("/v1/events/%d", e.ID)).status)
					continue
				}
				for _, at := range []string{"", "?timestamp=" + url.QueryEscape(e.Timestamp)} {
					path := fmt.Sprintf("/v1/events/%d%s", e.ID, at)
					require.Equal(t, http.StatusOK, b.get(tokenAll, path).status) // it is there, and cached
					none++                                                        // asked for the first time too
					for range 2 {
						hidden, rows, queries := work(path)
						absent, rowsOfNone, queriesOfNone := work(fmt.Sprintf("/v1/events/%d%s", none, at))
						require.Equal(t, http.StatusNotFound, hidden.status)
						require.Equal(t, absent, hidden)
						require.Equal(t, rowsOfNone, rows)
						require.Equal(t, queriesOfNone, queries)
						require.Zero(t, rows)
						require.Positive(t, queries)
					}
				}
			}
		})
	}
}

// TestCacheKnowsTenants: the same questions, asked by callers of every scope in every order, each time from the database and from the cache, have each caller's own answers.
func TestCacheKnowsTenants(t *testing.T) {
	plain := newBed(t, setup{})
	b := newBed(t, setup{url: plain.url, redis: testkit.OwnRedis(t)})
	b.insert("A", 10)
	b.insert("B", 10)
	b.insert("", 10)
	all := plain.page(tokenAll, b.events("limit", "1000")).Events
	callers := []string{tokenA, tokenB, tokenBoth, tokenAll, tokenNone}
	questions := []string{b.events(), b.events("limit", "4", "count", "true"), b.events("order", "asc"), b.events("organizationId", "B", "count", "true"), b.events("action", "action-of-A"), b.events("organizationId", "A", "limit", "4")}
	for i := 0; i < len(all); i += 7 {
		questions = append(questions, fmt.Sprintf("/v1/events/%d", all[i].ID), fmt.Sprintf("/v1/events/%d?timestamp=%s", all[i].ID, url.QueryEscape(all[i].Timestamp)))
	}
	type question struct{ caller, path string }
	truth := map[question]answer{}
	for _, caller := range callers {
		for _, path := range questions {
			a := plain.get(caller, path)
			a.header.Del("Date")
			truth[question{caller, path}] = a
		}
	}
	require.NotEqual(t, truth[question{tokenA, questions[0]}].body, truth[question{tokenB, questions[0]}].body)
	orders := 0
	for order := range permutations(callers) {
		if orders++; orders%5 != 0 && orders > 24 { // 24 begin with A, then a fifth of the others
			continue
		}
		require.NoError(t, b.cache.Invalidate(t.Context()))
		for range 2 {
			for _, path := range questions {
				for _, caller := range order {
					a := b.get(caller, path)
					a.header.Del("Date")
					require.Equal(t, truth[question{caller, path}], a, "%s asks %s in the order %v", caller, path, order)
				}
			}
		}
	}
	sample, err := b.metrics.Sample(time.Now())
	require.NoError(t, err)
	hits := sample.Sum("query_cache_requests_total", metrics.Label{Name: "result", Value: "hit"})
	require.Greater(t, hits, float64(20*len(questions)*len(callers))/2, "most second questions were answered by the cache")
	require.Zero(t, sample.Sum("query_cache_requests_total", metrics.Label{Name: "result", Value: "error"}))
}

// permutations yields every order of texts.
func permutations(texts []string) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		var from func(i int, order []string) bool
		from = func(i int, order []string) bool {
			if i == len(order) {
				return yield(slices.Clone(order))
			}
			for j := i; j < len(order); j++ {
				order[i], order[j] = order[j], order[i]
				if !from(i+1, order) {
					return false
				}
				order[i], order[j] = order[j], order[i]
			}
			return true
		}
		from(0, slices.Clone(texts))
	}
}

// TestFresh: Cache-Control: no-cache asks the database, and what it says is what others get from then on.
func TestFresh(t *testing.T) {
	b := newBed(t, setup{redis: testkit.OwnRedis(t)})
	b.insert("A", 3)
	count := func(header http.Header) int {
		t.Helper()
		a := b.do(b.request(http.MethodGet, tokenA, b.events(), header))
		require.Equal(t, http.StatusOK, a.status)
		return len(decode[page](t, a.body).Events)
	}
	hits := func() float64 {
		sample, err := b.metrics.Sample(time.Now())
		require.NoError(t, err)
		return sample.Sum("query_cache_requests_total", metrics.Label{Name: "result", Value: "hit"})
	}
	require.Equal(t, 3, count(nil))
	eventually(t, "the answer is cached", func() bool { before := hits(); count(nil); return hits() > before })
	b.insert("A", 3)
	require.Equal(t, 3, count(nil), "from the cache")
	for _, value := range []string{"no-cache", "No-Store", "private, max-age=0"} {
		require.Equal(t, 6, count(http.Header{"Cache-Control": {value}}), value)
	}
	eventually(t, "the new answer is cached", func() bool { return count(nil) == 6 })
}
