package query_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"auditsink/internal/event"
	"auditsink/internal/indexes"
	"auditsink/internal/postgres"
	"auditsink/internal/query"
	"auditsink/internal/testkit"
	"auditsink/metrics"
	"auditsink/migrations"
)

// recorder notes the statements that a reader runs.
type recorder struct {
	mu         sync.Mutex
	statements []recorded
}

type recorded struct {
	sql  string
	args []any
}

func (r *recorder) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.statements = append(r.statements, recorded{data.SQL, data.Args})
	return ctx
}

func (*recorder) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// take returns what has been noted since.
func (r *recorder) take() []recorded {
	r.mu.Lock()
	defer r.mu.Unlock()
	taken := r.statements
	r.statements = nil
	return taken
}

// planBed is a large table, and a reader whose statements are noted.
type planBed struct {
	*testing.T
	recorder *recorder
	reader   *query.Reader
	conn     *pgx.Conn // of its own, on which plans are asked for
	bound    int       // of blocks that a page or a count may touch
	rows     int
	months   int
}

// planStart is the first of the months that planBed has.
var planStart = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

func newPlanBed(t *testing.T, profile indexes.Profile, bound, version, rows, months int) *planBed {
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: version, Settings: map[string]string{
		"wal_level": "minimal", "max_wal_senders": "0", "fsync": "off", "shared_buffers": "256MB", "max_wal_size": "4GB", // soon filled
	}})
	url, err := server.CreateDatabase(t.Context())
	require.NoError(t, err)
	_, err = migrations.Apply(t.Context(), url)
	require.NoError(t, err)
	chooseIndexes(t, url, indexes.Choice{Profile: profile, Build: indexes.Immediate})
	begun := time.Now()
	require.NoError(t, testkit.FillEvents(t.Context(), url, rows, months, planStart))
	t.Logf("%d rows in %s", rows, time.Since(begun).Round(time.Millisecond))
	b := &planBed{T: t, recorder: &recorder{}, bound: bound, rows: rows, months: months}
	cfg, err := pgxpool.ParseConfig(url)
	require.NoError(t, err)
	cfg.ConnConfig.Tracer = b.recorder
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	b.reader = query.New(&postgres.Pool{Pool: pool}, query.Options{Metrics: metrics.New("test", event.Reasons()), Timeout: time.Minute})
	b.conn, err = pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.conn.Close(context.WithoutCancel(t.Context()))) })
	return b
}

// chooseIndexes gives an empty audit_log its indexes.
func chooseIndexes(t *testing.T, url string, choice indexes.Choice) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	require.NoError(t, pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return indexes.Choose(t.Context(), tx, choice) }))
	require.NoError(t, conn.Close(t.Context()))
}

// node is a node of a plan as EXPLAIN (FORMAT JSON) tells it.
type node struct {
	Type     string `json:"Node Type"`
	Relation string `json:"Relation Name"`
	Index    string `json:"Index Name"`
	Hit      int    `json:"Shared Hit Blocks"`
	Read     int    `json:"Shared Read Blocks"`
	Plans    []node `json:"Plans"`
}

func (n node) walk(each func(node)) {
	each(n)
	for _, child := range n.Plans {
		child.walk(each)
	}
}

// explained is how the server ran what was noted since.
type explained struct {
	statements, buffers int
	indexes             map[string]bool // without their table partitions
}

var indexOfTable = regexp.MustCompile(`^audit_log_\d{4}_\d\d_`)

// explain asks for the plans of what was noted, in the same settings and with the same values, and requires what all plans must be: of table partitions within the range only, and
// by index alone.
func (b *planBed) explain(t *testing.T, from, to time.Time) explained {
	t.Helper()
	e := explained{indexes: map[string]bool{}}
	for _, s := range b.recorder.take() {
		if strings.HasPrefix(s.sql, "BEGIN") || s.sql == "ROLLBACK" {
			_, err := b.conn.Exec(t.Context(), s.sql, pgx.QueryExecModeSimpleProtocol)
			require.NoError(t, err)
			continue
		}
		if strings.Contains(s.sql, "audit_log_partition_bounds") {
			continue
		}
		var plans []struct{ Plan node }
		var text []byte
		require.NoError(t, b.conn.QueryRow(t.Context(), "EXPLAIN (ANALYZE, BUFFERS, TIMING off, FORMAT JSON) "+s.sql, s.args...).Scan(&text))
		require.NoError(t, json.Unmarshal(text, &plans))
		e.statements++
		e.buffers += plans[0].Plan.Hit + plans[0].Plan.Read
		plans[0].Plan.walk(func(n node) {
			if n.Index != "" {
				e.indexes[indexOfTable.ReplaceAllString(n.Index, "")] = true
			}
			if n.Relation == "" {
				return
			}
			require.Contains(t, []string{"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}, n.Type, "%s\n%s", s.sql, text)
			month, err := time.Parse("audit_log_2006_01", n.Relation)
			require.NoError(t, err)
			require.True(t, month.Before(to) && month.AddDate(0, 1, 0).After(from), "%s is outside of %s to %s:\n%s\n%s", n.Relation, from, to, s.sql, text)
		})
	}
	require.Positive(t, e.statements)
	return e
}

// planCase is a question whose plan must be good.
type planCase struct {
	name  string
	rare  bool // at most three events
	scope query.Scope
	set   func(*query.Filter)
}

func (b *planBed) cases() []planCase {
	everything, mine := query.Everything(), query.Organizations("org-0", "org-7", "org-rare")
	number := b.rows / 2 // of a rare row
	sum := sha256.Sum256([]byte(fmt.Sprint(number)))
	hash := hex.EncodeToString(sum[:])
	cases := []planCase{
		{"nothing", false, everything, func(*query.Filter) {}},
		{"scope frequent", false, query.Organizations("org-0"), func(*query.Filter) {}},
		{"scope middling", false, query.Organizations("org-7"), func(*query.Filter) {}},
		{"scope of several", false, query.Organizations("org-3", "org-4", "org-5", "org-unknown"), func(*query.Filter) {}},
		{"scope rare", true, query.Organizations("org-rare"), func(*query.Filter) {}},
		{"scope unknown", true, query.Organizations("org-unknown"), func(*query.Filter) {}},
	}
	for _, scope := range []struct {
		name string
		query.Scope
	}{{"everything", everything}, {"mine", mine}} {
		add := func(name string, rare bool, set func(*query.Filter)) {
			cases = append(cases, planCase{scope.name + " " + name, rare, scope.Scope, set})
		}
		add("principal frequent", false, func(f *query.Filter) { f.PrincipalID = "service" })
		add("principal middling", false, func(f *query.Filter) { f.PrincipalID = "user-77" })
		add("principal rare", true, func(f *query.Filter) { f.PrincipalID = "user-rare" })
		add("principal unknown", true, func(f *query.Filter) { f.PrincipalID = "nobody" })
		add("organization frequent", false, func(f *query.Filter) { f.OrganizationID = "org-0" })
		add("organization middling", false, func(f *query.Filter) { f.OrganizationID = "org-7" })
		add("organization rare", true, func(f *query.Filter) { f.OrganizationID = "org-rare" })
		add("action frequent", false, func(f *query.Filter) { f.Action = "data.read" })
		add("action rare", true, func(f *query.Filter) { f.Action = "data.purge" })
		add("status frequent", false, func(f *query.Filter) { f.Status = "success" })
		add("status middling", false, func(f *query.Filter) { f.Status = "failure" })
		add("status rare", true, func(f *query.Filter) { f.Status = "attempt" })
		add("hash", true, func(f *query.Filter) { f.Hash = hash })
		add("resource type frequent", false, func(f *query.Filter) { f.TargetResourceType = "patient" })
		add("resource type rare", true, func(f *query.Filter) { f.TargetResourceType = "legacy" })
		add("resource id", false, func(f *query.Filter) { f.TargetResourceID = "resource-77" })
		add("correlation id", true, func(f *query.Filter) { f.CorrelationID = fmt.Sprintf("corr-%d", number/3) })
		add("classification frequent", false, func(f *query.Filter) { f.DataClassification = "PHI" })
		add("classification rare", true, func(f *query.Filter) { f.DataClassification = "PUBLIC" })
		add("policy frequent", false, func(f *query.Filter) { f.RetentionPolicy = "standard" })
		add("policy rare", true, func(f *query.Filter) { f.RetentionPolicy = "minimal" })
		add("archived", false, func(f *query.Filter) {
			f.ArchivedFrom = planStart.AddDate(1, 1, 0)
			f.ArchivedTo = planStart.AddDate(1, 2, 0)
		})
		add("archived shortly", false, func(f *query.Filter) {
			f.ArchivedFrom = planStart.AddDate(1, 1, 0)
			f.ArchivedTo = f.ArchivedFrom.Add(time.Hour)
		})
		// Pairs, those first that have an index of two columns.
		add("principal and action", false, func(f *query.Filter) { f.PrincipalID, f.Action = "service", "data.update" })
		add("principal middling and action", false, func(f *query.Filter) { f.PrincipalID, f.Action = "user-77", "data.read" })
		add("principal and action rare", true, func(f *query.Filter) { f.PrincipalID, f.Action = "user-rare", "data.purge" })
		add("classification and policy", false, func(f *query.Filter) { f.DataClassification, f.RetentionPolicy = "CONFIDENTIAL", "2555" })
		add("classification and policy rare", true, func(f *query.Filter) { f.DataClassification, f.RetentionPolicy = "PUBLIC", "minimal" })
		add("resource", false, func(f *query.Filter) { f.TargetResourceType, f.TargetResourceID = "patient", "resource-77" })
		add("status and action", false, func(f *query.Filter) { f.Status, f.Action = "failure", "auth.login" })
		add("status and principal", false, func(f *query.Filter) { f.Status, f.PrincipalID = "failure", "service" })
		add("frequent and rare", true, func(f *query.Filter) { f.Action, f.PrincipalID = "data.read", "user-rare" })
		add("two rare", true, func(f *query.Filter) { f.Status, f.CorrelationID = "attempt", "corr-1" })
	}
	return cases
}

// How many blocks of 8 KiB a page of 100, or a count up to 1,000, may touch. Where two conditions that each hold for many rows hold together for few, it is read by time through all that lie between.
const (
	fullBound = 4000  // 32 MB, of a table of 2.4 GB with its indexes
	leanBound = 10000 // 80 MB: two frequent values that few rows of the scope have, counted; and small partitions that are read by time for a rare value
	rareBound = 1000  // a count of what is rare: an index leads there, or the filters of all partitions do, which are 3 % of them
)

// testPlans requires good plans of every question: pages from the first on, both ways, over a month, half a year and everything; counts; and single events.
func (b *planBed) testPlans(t *testing.T) {
	past := planStart.AddDate(0, b.months, 0)
	ranges := []struct{ from, to time.Time }{
		{planStart.AddDate(0, b.months/2, 9), planStart.AddDate(0, b.months/2, 20)}, // within a month
		{planStart.AddDate(0, b.months/2-3, 0), planStart.AddDate(0, b.months/2+3, 0)},
		{planStart.AddDate(-3, 0, 0), past.AddDate(1, 0, 0)},
	}
	worst := map[string]int{}
	for _, c := range b.cases() {
		for _, r := range ranges {
			for _, ascending := range []bool{false, true} {
				f := query.Filter{From: r.from, To: r.to, Ascending: ascending}
				c.set(&f)
				limit, pages := 100, 3
				if c.rare {
					limit = 1
				}
				after := ""
				for n := range pages {
					page, err := b.reader.Events(t.Context(), c.scope, f, limit, after)
					require.NoError(t, err)
					e := b.explain(t, r.from, r.to)
					require.LessOrEqual(t, e.buffers, b.bound, "%s, page %d of %+v", c.name, n+1, f)
					if e.buffers > worst[c.name] {
						worst[c.name] = e.buffers
					}
					if after = page.Next; after == "" {
						break
					}
				}
			}
			f := query.Filter{From: r.from, To: r.to}
			c.set(&f)
			_, err := b.reader.Count(t.Context(), c.scope, f, 1000)
			require.NoError(t, err)
			e := b.explain(t, r.from, r.to)
			require.LessOrEqual(t, e.buffers, b.bound, "count of %s: %+v", c.name, f)
			if c.rare {
				require.LessOrEqual(t, e.buffers, rareBound, "count of %s: %+v", c.name, f)
			}
			worst["count "+c.name] = max(worst["count "+c.name], e.buffers)
		}
	}
	for _, id := range []int64{1, int64(b.rows)/2 + 1, int64(b.rows), int64(b.rows) + 1} {
		_, err := b.reader.Event(t.Context(), query.Everything(), id, time.Time{})
		require.True(t, err == nil && id <= int64(b.rows) || errors.Is(err, query.ErrNotFound), "%v", err)
		e := b.explain(t, planStart, past)
		require.LessOrEqual(t, e.buffers, 4*b.months)
		require.Equal(t, map[string]bool{"pkey": true}, e.indexes)
	}
	_, err := b.reader.Event(t.Context(), query.Everything(), 1, planStart)
	require.NoError(t, err)
	require.LessOrEqual(t, b.explain(t, planStart, planStart.Add(time.Second)).buffers, 4)
	for name, buffers := range worst {
		t.Logf("%6d blocks: %s", buffers, name)
	}
}

// TestPlans: of two million rows, each question's plan prunes table partitions and goes by an index.
func TestPlans(t *testing.T) {
	b := newPlanBed(t, indexes.Full, fullBound, 18, 2_000_000, 24)
	b.testPlans(t)
}

// TestPlans15: as TestPlans, on the oldest server and with fewer rows.
func TestPlans15(t *testing.T) {
	b := newPlanBed(t, indexes.Full, fullBound, 15, 120_000, 12)
	b.testPlans(t)
}

// TestPlansLean: as TestPlans, with the lean profile, of a table of more than twice the bound.
func TestPlansLean(t *testing.T) {
	b := newPlanBed(t, indexes.Lean, leanBound, 18, 400_000, 12)
	b.testPlans(t)
}

// TestPlansLean15: as TestPlansLean, on the oldest server and with fewer rows: of the bounds it is that of counts of what is rare that can be exceeded.
func TestPlansLean15(t *testing.T) {
	b := newPlanBed(t, indexes.Lean, leanBound, 15, 160_000, 12)
	b.testPlans(t)
}
