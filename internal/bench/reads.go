package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"auditsink/internal/event"
	"auditsink/internal/postgres"
	"auditsink/internal/query"
	"auditsink/internal/testkit"
	"auditsink/metrics"
)

// readsPlan is how large the table is that pages are read of, and how often each.
type readsPlan struct {
	rows, months int
	cold, warm   int // how often a page is read
}

// readsFigures are how long a page of 100 events takes, by filter.
type readsFigures struct {
	Rows   int         `json:"rows"`
	Months int         `json:"months"`
	Cold   int         `json:"cold_reads"`
	Warm   int         `json:"warm_reads"` // as many cached ones
	Pages  []pageTimes `json:"pages"`
}

// pageTimes are those of one filter.
type pageTimes struct {
	Filter string `json:"filter"`
	Events int    `json:"events"`
	Cold   millis `json:"cold_ms"`
	Warm   millis `json:"warm_ms"`
	Cached millis `json:"cached_ms"`
}

// millis are a median and a 95th percentile in milliseconds.
type millis struct {
	Median float64 `json:"median"`
	P95    float64 `json:"p95"`
}

// pageFilters are what is asked for, of the values that testkit.FillEvents makes. Each is asked of the second quarter of the months.
var pageFilters = []struct {
	name   string
	filter query.Filter
}{
	{"time alone", query.Filter{}},
	{"time alone, oldest first", query.Filter{Ascending: true}},
	{"principalId, 1 in 6,000", query.Filter{PrincipalID: "user-17"}},
	{"principalId, 1 in 5", query.Filter{PrincipalID: "service"}},
	{"organizationId, 1 in 2", query.Filter{OrganizationID: "org-0"}},
	{"organizationId, 3 in all", query.Filter{OrganizationID: "org-rare"}},
	{"action, 3 in 4", query.Filter{Action: "data.read"}},
	{"status, 1 in 10", query.Filter{Status: "failure"}},
	{"status, 3 in all", query.Filter{Status: "attempt"}},
	{"correlationId, 3 in all", query.Filter{CorrelationID: "corr-200000"}},
	{"targetResourceType and Id", query.Filter{TargetResourceType: "patient", TargetResourceID: "resource-99"}},
	{"principalId and action", query.Filter{PrincipalID: "service", Action: "auth.login"}},
	{"dataClassification, 2 in 3", query.Filter{DataClassification: "PHI"}},
}

// measureReads times pages: cold, of a server that has just started; warm, read before; and cached, from Redis. It fails when one isn't what another was.
func (b *bench) measureReads(ctx context.Context) (f *readsFigures, err error) {
	f = &readsFigures{Rows: b.reads.rows, Months: b.reads.months, Cold: b.reads.cold, Warm: b.reads.warm}
	store, err := testkit.StartRedis(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	now := time.Now().UTC()
	first := time.Date(now.Year(), now.Month()-time.Month(f.Months), 1, 0, 0, 0, 0, time.UTC)
	return f, b.onDatabase(ctx, allIndexes, func(db *database) error {
		say("reads: making %d rows of %d months", f.Rows, f.Months)
		if err := testkit.FillEvents(ctx, db.url, f.Rows, f.Months, first); err != nil {
			return err
		}
		if err := db.checkpoint(ctx); err != nil {
			return err
		}
		for _, asked := range pageFilters {
			asked.filter.From, asked.filter.To = first.AddDate(0, f.Months/4, 0), first.AddDate(0, f.Months/2, 0)
			p, err := b.page(ctx, db, store, asked.filter)
			if err != nil {
				return fmt.Errorf("%s: %w", asked.name, err)
			}
			p.Filter = asked.name
			say("reads: %s: %d events; cold %.1f ms, warm %.1f ms, cached %.1f ms", p.Filter, p.Events, p.Cold.Median, p.Warm.Median, p.Cached.Median)
			f.Pages = append(f.Pages, p)
		}
		return nil
	})
}

// warmingUp is how many reads come before those that are timed.
const warmingUp = 3

// page times one filter's first page.
func (b *bench) page(ctx context.Context, db *database, store *testkit.RedisServer, filter query.Filter) (pageTimes, error) {
	var p pageTimes
	var right []int64 // the IDs of the page
	read := func(r *query.Reader) (time.Duration, error) {
		begun := time.Now()
		page, err := r.Events(ctx, query.Everything(), filter, 100, "")
		took := time.Since(begun)
		if err != nil {
			return 0, err
		}
		var ids []int64
		for _, e := range page.Events {
			ids = append(ids, e.ID)
		}
		if right == nil {
			right, p.Events = ids, len(ids)
		}
		if !slices.Equal(ids, right) {
			return 0, errors.New("two pages of one question differ")
		}
		return took, nil
	}
	var cold, warm, cached []float64
	for range b.reads.cold {
		if err := b.postgres.Stop(); err != nil {
			return p, err
		}
		if err := b.postgres.Restart(ctx); err != nil {
			return p, err
		}
		if err := db.reconnect(ctx); err != nil {
			return p, err
		}
		err := onReader(ctx, db.url, nil, func(r *query.Reader) error {
			took, err := read(r)
			cold = append(cold, inMillis(took))
			return err
		})
		if err != nil {
			return p, err
		}
	}
	for _, again := range []struct {
		store *testkit.RedisServer
		took  *[]float64
	}{{nil, &warm}, {store, &cached}} {
		err := onReader(ctx, db.url, again.store, func(r *query.Reader) error {
			for n := range b.reads.warm + warmingUp {
				took, err := read(r)
				if err != nil {
					return err
				}
				if n >= warmingUp {
					*again.took = append(*again.took, inMillis(took))
				}
			}
			return nil
		})
		if err != nil {
			return p, err
		}
	}
	p.Cold, p.Warm, p.Cached = millisOf(cold), millisOf(warm), millisOf(cached)
	return p, nil
}

// onReader hands over a reader that has a connection, and a cache where there is a Redis. It fails where that wasn't used.
func onReader(ctx context.Context, url string, store *testkit.RedisServer, do func(*query.Reader) error) error {
	pool, err := postgres.Open(ctx, postgres.Options{URL: url, Prepared: true, MaxConns: 4})
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := pool.Wait(ctx, 20, 100*time.Millisecond, func(error) {}); err != nil {
		return err
	}
	m := metrics.New("bench", event.Reasons())
	o := query.Options{Metrics: m, Timeout: time.Minute, RetryAttempts: 1}
	if store != nil {
		client := redis.NewClient(&redis.Options{Addr: store.Address(), MaxRetries: -1})
		defer client.Close() //nolint:errcheck // there is nothing to be saved
		o.Cache = query.NewCache(client, query.CacheOptions{Namespace: pool.Identity, TTL: time.Hour, EntryBytes: 1 << 20, Timeout: 5 * time.Second, Metrics: m})
		defer o.Cache.Close()
	}
	r := query.New(pool, o)
	defer r.Close()
	if err := do(r); err != nil || store == nil {
		return err
	}
	s, err := m.Sample(time.Now())
	if err != nil {
		return err
	}
	// Right after the first, answers may be shared with it that is still being stored.
	if results := s.By("query_cache_requests_total", "result"); results["hit"]+results["shared"] == 0 || results["error"] > 0 {
		return fmt.Errorf("the cache wasn't used: %v", results)
	}
	return nil
}

func inMillis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func millisOf(values []float64) millis {
	slices.Sort(values)
	return millis{Median: median(values, func(v float64) float64 { return v }), P95: values[(len(values)*95+99)/100-1]}
}

func (f *readsFigures) print(out *bytes.Buffer) {
	if f == nil {
		return
	}
	fmt.Fprintf(out, "\nreads: a page of 100 of %d rows, %d months; the range is a quarter of them; %d cold reads each, %d warm and cached ones\n", f.Rows, f.Months, f.Cold, f.Warm)
	fmt.Fprintf(out, "%-28s %7s  %-16s  %-16s  %-16s\n", "", "", "cold, ms", "warm, ms", "cached, ms")
	fmt.Fprintf(out, "%-28s %7s  %8s %7s  %8s %7s  %8s %7s\n", "filter", "events", "median", "p95", "median", "p95", "median", "p95")
	for _, p := range f.Pages {
		fmt.Fprintf(out, "%-28s %7d  %8.2f %7.2f  %8.2f %7.2f  %8.2f %7.2f\n", p.Filter, p.Events, p.Cold.Median, p.Cold.P95, p.Warm.Median, p.Warm.P95, p.Cached.Median, p.Cached.P95)
	}
	out.WriteString("cold: after a restart of PostgreSQL, with what the kernel has in its cache; the first look at the table partitions is part of it\n")
}
