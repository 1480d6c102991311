package performance

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// WriteReport writes a report for people. A dash stands for what isn't known.
func WriteReport(out io.Writer, r Report) error {
	var b bytes.Buffer
	p := &printer{tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)}
	p.line("Performance of %s", r.Worker)
	p.line("%s to %s (%s)", clock(r.From), clock(r.To), duration(r.Seconds))
	p.worker(r)
	p.database(r.Database)
	p.section("Optimizations")
	for _, o := range r.Optimizations {
		p.row(clock(o.Begun), o.Rule, o.Target, o.State, strings.Join(slices.DeleteFunc([]string{o.Reason, o.Detail}, func(s string) bool { return s == "" }), "; "))
	}
	p.none(len(r.Optimizations))
	p.section("Advice on the server's settings")
	for _, a := range r.Advice {
		p.row(a.Setting, a.Current, "→", a.Proposed, a.Why)
	}
	p.none(len(r.Advice))
	for _, what := range r.AdviceUnknown {
		p.line("not known: %s", what)
	}
	if err := p.w.Flush(); err != nil {
		return err
	}
	_, err := out.Write(b.Bytes())
	return err
}

// printer writes to memory, which can't fail.
type printer struct{ w *tabwriter.Writer }

func (p *printer) line(format string, args ...any) { fmt.Fprintf(p.w, format+"\n", args...) } //nolint:errcheck // see printer

func (p *printer) row(cells ...any) {
	texts := make([]string, len(cells))
	for i, c := range cells {
		texts[i] = fmt.Sprint(c)
	}
	p.line("  %s", strings.Join(texts, "\t"))
}

func (p *printer) section(name string) { p.line("\n%s", name) }

func (p *printer) none(n int) {
	if n == 0 {
		p.line("  none")
	}
}

func (p *printer) worker(r Report) {
	i, f := r.Ingest, r.Flush
	p.section("Ingest")
	p.row("records", number(i.Records), fmt.Sprintf("%.1f/s", i.RecordsPerSecond))
	p.row("rows", number(i.Rows), fmt.Sprintf("%.1f/s", i.RowsPerSecond))
	p.row("quarantined", number(i.Quarantined))
	p.row("record to commit", quantileText(i.EndToEnd))
	p.row("lag", fmt.Sprintf("%s records, at most %s or %s of a lane", number(i.LagRecords), number(i.LagRecordsMax), duration(i.LagSecondsMax)))
	p.section("Flushes")
	p.row("count", f.Count, fmt.Sprintf("%.0f rows on average", f.MeanRows))
	p.row("duration", quantileText(f.Duration))
	for _, class := range slices.Sorted(maps.Keys(f.Retries)) {
		p.row("retries, "+class, number(f.Retries[class]))
	}
	p.row("fenced", number(f.Fenced))
	p.section("Connections")
	for _, pool := range []struct {
		name string
		*Pool
	}{{"ingest", r.Pool}, {"reads", r.Reads}} {
		if pool.Pool == nil {
			p.row(pool.name, "-")
			continue
		}
		p.row(pool.name, fmt.Sprintf("%s of %s, %s active, %s idle, %s waiting", number(pool.Total), number(pool.Max), number(pool.Active), number(pool.Idle), number(pool.Waiting)),
			fmt.Sprintf("acquired %d times in %s (p95 %s), %s failed", pool.Acquires, duration(pool.AcquireMeanSeconds), duration(pool.AcquireP95Seconds), number(pool.Failures)))
	}
	p.section("Cache")
	if c := r.Cache; c == nil {
		p.row("there is none")
	} else {
		p.row(number(c.Gets)+" gets", number(c.Hits)+" hits", optional(c.Ratio, percent), number(c.Errors)+" errors", number(c.Shared)+" shared")
	}
	p.section("Process")
	p.row("memory", size(r.Process.ResidentBytes), "heap "+size(r.Process.HeapBytes))
	p.row("goroutines", number(r.Process.Goroutines))
	p.row("CPU", duration(r.Process.CPUSeconds), "garbage collection "+duration(r.Process.GCCPUSeconds))
}

func (p *printer) database(d Database) {
	p.section("Database " + d.Version)
	if t := d.Tables; t != nil {
		p.row("blocks in memory", optional(t.HitRatio, percent), fmt.Sprintf("of %d since %s", t.Hits+t.Reads, clock(t.Since)))
		p.row("rows", t.LiveRows, fmt.Sprintf("%d dead", t.DeadRows))
		for _, one := range t.Dead[:min(len(t.Dead), 5)] {
			p.row("dead in "+one.Name, one.Dead, fmt.Sprintf("of %d; vacuumed %s", one.Live+one.Dead, clock(one.Vacuumed)))
		}
	}
	if s := d.Partitions; s != nil {
		p.row("partitions", s.Count, fmt.Sprintf("ready until %s; %d detached (%s), %d detaching", clock(s.ReadyUntil), s.Detached, size(float64(s.DetachedBytes)), s.Detaching))
		p.row("sizes", "tables "+size(float64(s.TableBytes)), fmt.Sprintf("indexes %s; largest: %s (%s)", size(float64(s.IndexBytes)), dash(s.Biggest), size(float64(s.BiggestBytes))))
	}
	if w := d.WAL; w != nil {
		p.row("WAL", size(w.BytesPerSecond)+"/s", fmt.Sprintf("%s since %s, %d full-page images", size(float64(w.Bytes)), clock(w.Since), w.FullPageImages))
	}
	if c := d.Checkpoints; c != nil {
		p.row("checkpoints", fmt.Sprintf("%d timed, %d requested", c.Timed, c.Requested), fmt.Sprintf("since %s; %s to write, %s to sync", clock(c.Since), duration(c.WriteSeconds), duration(c.SyncSeconds)))
	}
	if a := d.Activity; a != nil {
		p.row("connections", a.Connections, fmt.Sprintf("%d of others; %d commits, %d rollbacks, %d deadlocks, %d temporary files (%s)",
			a.Others, a.Commits, a.Rollbacks, a.Deadlocks, a.TempFiles, size(float64(a.TempBytes))))
	}
	for _, u := range d.Unread {
		p.line("  can't be read: %s: %s", u.Part, u.Why)
	}
	if s := d.Statements; s != nil {
		p.section(fmt.Sprintf("Statements by time since %s (%d slow)", clock(s.Since), s.Slow))
		for _, one := range s.Top {
			mark := ""
			if one.Slow {
				mark = "slow"
			}
			p.row(duration(one.TotalSeconds), fmt.Sprintf("%d calls", one.Calls), duration(one.MeanSeconds), mark, short(one.Text))
		}
		p.none(len(s.Top))
	}
	if i := d.Indexes; i != nil {
		p.section("Indexes by scans since " + clock(i.Since))
		for _, one := range i.All {
			p.row(one.Name, one.Scans, fmt.Sprintf("%d in all", one.ScansEver), size(float64(one.Bytes)))
		}
		if len(i.Unused) > 0 {
			p.line("  not used since %s: %s", clock(i.Stats), strings.Join(i.Unused, ", "))
		}
		if len(i.Invalid) > 0 {
			p.line("  not usable everywhere: %s", strings.Join(i.Invalid, ", "))
		}
		for _, m := range i.Missing {
			p.line("  read as a whole %d times, %d rows: %s: an index may be missing", m.Scans, m.RowsRead, m.Partition)
		}
	}
}

func quantileText(q Quantile) string {
	if q.Count == 0 {
		return "-"
	}
	return fmt.Sprintf("p50 %s, p95 %s, p99 %s", duration(q.P50), duration(q.P95), duration(q.P99))
}

func optional(v *float64, text func(float64) string) string {
	if v == nil {
		return "-"
	}
	return text(*v)
}

func percent(share float64) string { return fmt.Sprintf("%.1f%%", 100*share) }

func number(n float64) string { return fmt.Sprintf("%.0f", n) }

// short is the begin of a text.
func short(text string) string {
	const most = 120
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return text
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

// duration is one in seconds, with three digits.
func duration(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	unit := time.Duration(1)
	for d >= 1000*unit {
		unit *= 10
	}
	return d.Round(unit).String()
}

func size(bytes float64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	for len(units) > 1 && bytes >= 1024 {
		bytes, units = bytes/1024, units[1:]
	}
	if units[0] == "B" {
		return fmt.Sprintf("%.0f B", bytes)
	}
	return fmt.Sprintf("%.1f %s", bytes, units[0])
}
