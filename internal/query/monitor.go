package query

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// reading is what a named query has taken so far.
type reading struct {
	acquire    time.Duration // the wait for connections
	rows       int64
	statements int
	// The slowest statement so far, and a table partition that it read.
	slowest time.Duration
	text    string
	table   string
}

// watched runs a named query within the timeout, and counts what it took. It is logged where it was slow, failed or not.
func (r *Reader) watched(ctx context.Context, name string, do func(context.Context, *session) error) error {
	timed, cancel := r.within(ctx)
	defer cancel()
	s := session{r: r}
	begun := time.Now()
	err := do(timed, &s)
	s.end(timed)
	took := time.Since(begun)

	r.o.Metrics.QuerySeconds.WithLabelValues(name).Observe(took.Seconds())
	r.o.Metrics.QueryRows.WithLabelValues(name).Add(float64(s.rows))
	if err != nil && ctx.Err() == nil { // not for the caller's own end
		r.o.Metrics.QueryFailures.WithLabelValues(name).Inc()
	}
	if took >= r.o.Slow && r.o.Slow > 0 {
		r.o.Metrics.SlowQueries.WithLabelValues(name).Inc()
		r.tellSlow(name, took, s.reading, err)
	}
	return err
}

// note counts a statement of the query.
func (m *reading) note(s statement, took time.Duration) {
	m.statements++
	if m.text == "" || took > m.slowest {
		m.slowest, m.text, m.table = took, s.text, s.table
	}
}

// The limits of plans: one for each text a minute, for so many texts, and one at a time, which may take so long and be so large.
const (
	planPause   = time.Minute
	planTexts   = 1000
	planTimeout = 5 * time.Second
	planBytes   = 16 << 10
)

// plans keeps a flood of slow queries from becoming one of plans.
type plans struct {
	mu   sync.Mutex
	busy bool
	made map[string]time.Time // by text
	wg   sync.WaitGroup
}

// begin tells whether a plan may be made now, and if not, why.
func (p *plans) begin(text string, now time.Time) (refused string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for t, at := range p.made {
		if now.Sub(at) >= planPause {
			delete(p.made, t)
		}
	}
	switch _, made := p.made[text]; {
	case made:
		return "logged for this text within the last minute"
	case p.busy:
		return "that of another query is being made"
	case len(p.made) >= planTexts:
		return "too many texts within the last minute"
	}
	if p.made == nil {
		p.made = map[string]time.Time{}
	}
	p.made[text], p.busy = now, true
	p.wg.Add(1)
	return ""
}

func (p *plans) done() {
	p.mu.Lock()
	p.busy = false
	p.mu.Unlock()
	p.wg.Done()
}

// tellSlow logs a slow query. Where it is logged with its plan, that is made meanwhile: whoever asked doesn't wait for it.
func (r *Reader) tellSlow(name string, took time.Duration, m reading, failed error) {
	text := strings.Join(strings.Fields(m.text), " ")
	fields := []zap.Field{
		zap.String("query", name), zap.Duration("took", took), zap.Duration("acquire", m.acquire), zap.Int64("rows", m.rows), zap.Int("statements", m.statements),
		zap.Duration("slowest", m.slowest), zap.String("text", text), zap.Bool("failed", failed != nil),
	}
	tell := func(more zap.Field) { r.o.Log.Warn("slow query (AUDITSINK_SLOW_QUERY)", append(fields, more)...) }
	if m.text == "" {
		tell(zap.String("no_plan", "no statement was run"))
		return
	}
	if refused := r.plans.begin(text, time.Now()); refused != "" {
		tell(zap.String("no_plan", refused))
		return
	}
	go func() {
		defer r.plans.done()
		ctx, cancel := context.WithTimeout(context.Background(), planTimeout)
		defer cancel()
		plan, err := r.plan(ctx, onTable(text, m.table))
		if err != nil {
			tell(zap.NamedError("no_plan", err))
			return
		}
		tell(zap.String("plan", plan))
	}()
}

// onTable is a statement that reads one table partition instead of all. The plan for any values can't prune, so it would take locks on every table partition and index.
func onTable(text, table string) string {
	if table == "" {
		return text
	}
	return strings.Replace(text, " FROM audit_log ", " FROM "+table+" ", 1)
}

// plan asks the server how it would run a statement for any values: EXPLAIN without executing it, and without parameters.
func (r *Reader) plan(ctx context.Context, text string) (_ string, err error) {
	conn, err := r.pool.Acquire(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Release()
	server := conn.Conn().PgConn()
	explain := "EXPLAIN (GENERIC_PLAN) " + text // from PostgreSQL 16 on
	if v, err := strconv.Atoi(strings.FieldsFunc(server.ParameterStatus("server_version"), func(c rune) bool { return c < '0' || c > '9' })[0]); err == nil && v < 16 {
		n := strings.Count(text, "$")
		explain = fmt.Sprintf("SET LOCAL plan_cache_mode = force_generic_plan; PREPARE auditsink_plan AS %s; EXPLAIN EXECUTE auditsink_plan (%s); DEALLOCATE auditsink_plan",
			text, strings.TrimSuffix(strings.Repeat("NULL,", n), ","))
	}
	results, err := server.Exec(ctx, fmt.Sprintf(begin, planTimeout.Milliseconds())+"; "+explain+"; ROLLBACK").ReadAll()
	if err != nil {
		// A statement that is left prepared, or an open transaction, ends with the connection.
		return "", errors.Join(err, conn.Conn().Close(ctx))
	}
	var lines []string
	size := 0
	for _, result := range results {
		for _, row := range result.Rows {
			if size += len(row[0]); size > planBytes {
				return strings.Join(append(lines, "…"), "\n"), nil
			}
			lines = append(lines, string(row[0]))
		}
	}
	return strings.Join(lines, "\n"), nil
}
