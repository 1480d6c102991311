package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"auditsink/internal/performance"
	"auditsink/internal/postgres"
	"auditsink/internal/query"
	"auditsink/internal/server"
	"auditsink/internal/testkit"
	"auditsink/metrics"
	"auditsink/migrations"
	"auditsink/partitions"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// patience is how long a test waits for what must come: far more than it takes.
const patience = time.Minute

// eventually waits until a condition holds, for as long as a test may.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	testkit.Eventually(t, patience, what, cond)
}

// The tokens of a bed.
const (
	tokenA, tokenB, tokenBoth, tokenNone, tokenAll = "token-of-a", "token-of-b", "token-of-both", "token-of-nobody", "token-of-all"
)

// bed is a database of events of several organizations, and a server that answers for it.
type bed struct {
	*testing.T
	url      string
	pool     *postgres.Pool // of the server's reads
	server   *server.Server
	log      *observer.ObservedLogs
	metrics  *metrics.Metrics
	cache    *query.Cache // nil without
	from, to time.Time    // a range that has all events
}

// setup is what a bed has that isn't as usual.
type setup struct {
	noTokens bool
	server   func(*server.Options)
	pool     func(*postgres.Options)
	reader   func(*query.Options)
	stall    time.Duration
	url      string               // of a database that is there already
	redis    *testkit.RedisServer // what is read is cached there
}

func newBed(t *testing.T, s setup) *bed {
	t.Helper()
	b := &bed{T: t, url: s.url, metrics: metrics.New("test", []fmt.Stringer{})}
	border := lastMonth()
	b.from, b.to = border.Add(-time.Hour), border.Add(time.Hour)
	if b.url == "" {
		b.url = database(t)
	}
	o := postgres.Options{URL: b.url, MaxConns: 4, Prepared: true, AcquireTimeout: 10 * time.Second}
	if s.pool != nil {
		s.pool(&o)
	}
	pool, err := postgres.Open(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	b.pool = pool

	core, log := observer.New(zapcore.DebugLevel)
	b.log = log
	r := query.Options{Metrics: b.metrics, Log: zap.New(core), Slow: time.Hour, Timeout: patience, RetryAttempts: 1, RetryDelay: time.Millisecond}
	if s.reader != nil {
		s.reader(&r)
	}
	if s.redis != nil {
		client := redis.NewClient(&redis.Options{Addr: s.redis.Address(), MaxRetries: -1, ContextTimeoutEnabled: true})
		t.Cleanup(func() { require.NoError(t, client.Close()) })
		b.cache = query.NewCache(client, query.CacheOptions{
			Namespace: pool.Identity, TTL: time.Hour, EntryBytes: 1 << 20, Timeout: patience, Metrics: b.metrics, Log: zap.New(core),
		})
		t.Cleanup(b.cache.Close)
		r.Cache = b.cache
	}
	reader := query.New(pool, r)
	t.Cleanup(reader.Close)
	level := zap.NewAtomicLevelAt(zapcore.InfoLevel)
	so := server.Options{
		Addr: "127.0.0.1:0", Scrape: b.metrics.Handler(), Ready: func() error { return nil }, Health: healthy, Level: &level, Log: zap.New(core), Exports: 4,
		Reader: reader, Report: func(context.Context) (any, error) { return performance.Report{}, nil },
	}
	if !s.noTokens {
		so.Tokens, _, _ = openTokens(
			t, digest(tokenA)+` a ["A"]`, digest(tokenB)+` b ["B"]`, digest(tokenBoth)+` both ["A","B"]`, digest(tokenNone)+` none ["nobody"]`, digest(tokenAll)+` all *`,
		)
	}
	if s.server != nil {
		s.server(&so)
	}
	if s.stall == 0 {
		s.stall = patience
	}
	b.server, err = server.ListenImpatiently(t.Context(), so, s.stall)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.server.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return b
}

// lastMonth begins where one partition ends and another begins, so long ago that answers are cached for long.
func lastMonth() time.Time {
	now := time.Now().UTC()
	return time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC).AddDate(0, -1, 0)
}

// database makes a database with our tables, and partitions for this month, the last two and the next.
func database(t *testing.T) string {
	t.Helper()
	u := testkit.Postgres(t, 15)
	_, err := migrations.Apply(t.Context(), u)
	require.NoError(t, err)
	pool, err := postgres.Open(t.Context(), postgres.Options{URL: u})
	require.NoError(t, err)
	defer pool.Close()
	_, err = partitions.Ensure(t.Context(), pool.Pool, time.Now(), partitions.Schedule{Ahead: 1})
	require.NoError(t, err)
	_, err = partitions.EnsureFor(t.Context(), pool.Pool, time.Now(), 365*24*time.Hour, partitions.Schedule{}, []time.Time{lastMonth(), lastMonth().Add(-time.Hour)})
	require.NoError(t, err)
	return u
}

// exec runs SQL with a session of its own.
func (b *bed) exec(sql string, args ...any) {
	b.Helper()
	conn, err := pgx.Connect(b.Context(), b.url)
	require.NoError(b, err)
	_, err = conn.Exec(b.Context(), sql, args...)
	require.NoError(b, errors.Join(err, conn.Close(b.Context())), sql)
}

// value asks SQL for one value with a session of its own.
func (b *bed) value(sql string, args ...any) (n int64) {
	b.Helper()
	conn, err := pgx.Connect(b.Context(), b.url)
	require.NoError(b, err)
	err = conn.QueryRow(b.Context(), sql, args...).Scan(&n)
	require.NoError(b, errors.Join(err, conn.Close(b.Context())), sql)
	return n
}

// insert adds n events of an organization (none where it is empty), whose every text names it. They are spread over the range, and several share each instant.
func (b *bed) insert(organization string, n int) {
	b.Helper()
	var bound *string
	marker := "of-nobody"
	if organization != "" {
		bound, marker = &organization, "of-"+organization
	}
	b.exec(`INSERT INTO audit_log (timestamp, timestamp_text, ttl, principal_id, organization_id, action, target_resource_type, target_resource_id, status, outcome_description,
			hash, hash_algorithm, event_version, correlation_id, data_classification, retention_policy, processing_latency, archived_at, details, lane_id, lane_offset)
		SELECT at, CASE WHEN i % 2 = 0 THEN to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US') END, 'ttl-' || $2, 'principal-' || $2, $1, 'action-' || $2, 'type-' || $2, 'id-' || $2,
			'success', 'outcome-' || $2, encode(sha256(convert_to($2, 'UTF8')), 'hex'), 'SHA-256', '1.0', 'correlation-' || $2, 'PHI', 'policy-' || $2, 7, at + interval '1 day',
			jsonb_build_object('marker', 'details-' || $2, 'i', i), 1, i
		FROM (SELECT i, date_trunc('milliseconds', $4::timestamptz + (i / 3) * ($5::timestamptz - $4::timestamptz) / ($3 / 3 + 1)) at FROM generate_series(0, $3::int - 1) i) numbered`,
		bound, marker, n, b.from, b.to)
}

// answer is what the server said.
type answer struct {
	status int
	header http.Header
	body   string
}

// request makes a request with a token, none where that is empty.
func (b *bed) request(method, token, path string, header http.Header) *http.Request {
	b.Helper()
	r, err := http.NewRequestWithContext(b.Context(), method, "http://"+b.server.Addr()+path, nil)
	require.NoError(b, err)
	for name, values := range header {
		r.Header[name] = values
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return r
}

func (b *bed) do(r *http.Request) answer {
	b.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	resp, err := client.Do(r)
	require.NoError(b, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(b, errors.Join(err, resp.Body.Close()))
	return answer{resp.StatusCode, resp.Header, string(body)}
}

// get asks for a path with a token.
func (b *bed) get(token, path string) answer {
	b.Helper()
	return b.do(b.request(http.MethodGet, token, path, nil))
}

// events is the path of a question about the whole range, with more parameters in pairs.
func (b *bed) events(more ...string) string {
	values := url.Values{"from": {b.from.Format(time.RFC3339Nano)}, "to": {b.to.Format(time.RFC3339Nano)}}
	for i := 0; i < len(more); i += 2 {
		values.Set(more[i], more[i+1])
	}
	return "/v1/events?" + values.Encode()
}

// page is an answer of /v1/events.
type page struct {
	From, To time.Time
	Events   []query.Event
	Next     *string
	Count    *query.Count
}

func (b *bed) page(token, path string) page {
	b.Helper()
	a := b.get(token, path)
	require.Equal(b, http.StatusOK, a.status, "%s: %s", path, a.body)
	return decode[page](b.T, a.body)
}

func decode[T any](t *testing.T, body string) (v T) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(body))
	d.DisallowUnknownFields()
	require.NoError(t, d.Decode(&v), body)
	return v
}

// problem is what is wrong by an answer.
type problem struct {
	Type, Title, Detail, Parameter string
	Status                         int
}

// refused asks, and requires a problem of this status.
func (b *bed) refused(status int, r *http.Request) (problem, http.Header) {
	b.Helper()
	a := b.do(r)
	require.Equal(b, status, a.status, "%s %s: %s", r.Method, r.URL, a.body)
	require.Equal(b, "application/problem+json", a.header.Get("Content-Type"))
	require.Equal(b, "private, no-store", a.header.Get("Cache-Control"))
	p := decode[problem](b.T, a.body)
	require.Equal(b, problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: p.Detail, Parameter: p.Parameter}, p)
	require.NotEmpty(b, p.Detail)
	return p, a.header
}
