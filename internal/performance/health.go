package performance

import (
	"fmt"
	"time"

	"auditsink/metrics"
)

const (
	// component is what /health calls us.
	component = "performance"
	// lowHitRatio of the partitions' heaps is worth a warning where at least enoughBlocks were needed in the window.
	lowHitRatio  = 0.9
	enoughBlocks = 10_000
	// slowFlush is how many times the duration of a slow query the slowest flushes may take: a batch is thousands of rows, with all their indexes.
	slowFlush = 5
)

// health is what /health says of a report.
func health(r Report, slow time.Duration) metrics.Component {
	c := metrics.Component{Status: metrics.Healthy, Details: map[string]any{
		"report_at": r.To.Format(time.RFC3339), "records_per_second": r.Ingest.RecordsPerSecond, "rows_per_second": r.Ingest.RowsPerSecond,
		"flush_p99_seconds": r.Flush.Duration.P99, "advice": len(r.Advice),
	}}
	warn := func(format string, args ...any) {
		c.Status = metrics.Warning
		c.Recommendations = append(c.Recommendations, fmt.Sprintf(format, args...))
	}
	if limit := slowFlush * slow.Seconds(); r.Flush.Duration.P99 > limit {
		warn("the slowest flushes take %.1fs (p99; %.1fs is slow): see what the database waits for (pg_stat_activity, wait_event), and the advice of /v1/performance", r.Flush.Duration.P99, limit)
	}
	d := r.Database
	if t := d.Tables; t != nil && t.HitRatio != nil {
		c.Details["heap_hit_ratio"] = *t.HitRatio
		if *t.HitRatio < lowHitRatio && t.Hits+t.Reads >= enoughBlocks {
			warn("only %.0f%% of the blocks of audit_log that were needed were in memory: give the server more shared_buffers, or ask for narrower ranges of time", 100**t.HitRatio)
		}
	}
	if s := d.Statements; s != nil {
		c.Details["slow_statements"] = s.Slow
		if s.Slow > 0 {
			warn("%d statements take %s or longer on average (AUDITSINK_SLOW_QUERY): see `auditsink status --report`, and EXPLAIN them", s.Slow, slow)
		}
	}
	if i := d.Indexes; i != nil && len(i.Missing) > 0 {
		c.Recommendations = append(c.Recommendations, fmt.Sprintf("%d partitions are read as a whole again and again, %s most: an index may be missing for what is asked",
			len(i.Missing), i.Missing[0].Partition))
	}
	if len(d.Unread) > 0 {
		c.Details["unread"] = d.Unread
	}
	return c
}
