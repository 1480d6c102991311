package performance

import (
	"runtime/metrics"
	"time"

	watched "auditsink/metrics"
)

// moment is what is known of the worker at one moment.
type moment struct {
	sample watched.Sample
	gc     float64 // CPU seconds of garbage collection since the process began
}

// gcSeconds is the CPU time that collections have taken since the process began.
func gcSeconds() float64 {
	one := []metrics.Sample{{Name: "/cpu/classes/gc/total:cpu-seconds"}}
	metrics.Read(one)
	if one[0].Value.Kind() != metrics.KindFloat64 {
		return 0
	}
	return one[0].Value.Float64()
}

// figures are the parts of the report that the worker itself tells, from one moment to another.
func figures(before, after moment, cached bool) Report {
	from, to := before.sample, after.sample
	r := Report{From: from.At.UTC(), To: to.At.UTC(), Seconds: to.At.Sub(from.At).Seconds()}
	added := func(name string) float64 { return to.Sum(name) - from.Sum(name) }
	rate := func(count float64) float64 { return perSecond(count, to.At.Sub(from.At)) }

	r.Ingest = Ingest{
		Records: added("records_consumed_total"), Rows: added("rows_inserted_total"), Quarantined: added("quarantined_total"),
		EndToEnd:      quantiles(within(from, to, "end_to_end_latency_seconds")),
		LagRecordsMax: to.Max("consumer_lag_records"), LagSecondsMax: to.Max("consumer_lag_seconds"), LagRecords: to.Sum("consumer_lag_records"),
		Lanes: to.Sum("lanes_owned"), BufferedBytes: to.Sum("buffered_bytes"),
	}
	r.Ingest.RecordsPerSecond, r.Ingest.RowsPerSecond = rate(r.Ingest.Records), rate(r.Ingest.Rows)

	duration := within(from, to, "flush_duration_seconds")
	r.Flush = Flush{
		Count: duration.Count, Duration: quantiles(duration), MeanRows: within(from, to, "flush_rows").Mean(),
		Retries: map[string]float64{}, Fenced: added("fenced_total"),
	}
	earlier := from.By("flush_retries_total", "class")
	for class, count := range to.By("flush_retries_total", "class") {
		if count -= earlier[class]; count > 0 {
			r.Flush.Retries[class] = count
		}
	}

	r.Pool = pool(from, to, "db_pool", "db_pool_acquire_seconds")
	r.Reads = pool(from, to, "query_pool", "query_acquire_seconds")
	if cached {
		r.Cache = cache(from.By("query_cache_requests_total", "result"), to.By("query_cache_requests_total", "result"))
	}
	r.Process = Process{
		ResidentBytes: to.Process("process_resident_memory_bytes"), HeapBytes: to.Process("go_memstats_heap_alloc_bytes"), Goroutines: to.Process("go_goroutines"),
		CPUSeconds: to.Process("process_cpu_seconds_total") - from.Process("process_cpu_seconds_total"), GCCPUSeconds: after.gc - before.gc,
	}
	return r
}

// within is what a histogram counted from one sample to another.
func within(from, to watched.Sample, name string) watched.Distribution {
	return to.Distribution(name).Since(from.Distribution(name))
}

func quantiles(d watched.Distribution) Quantile {
	return Quantile{Count: d.Count, P50: d.Quantile(0.5), P95: d.Quantile(0.95), P99: d.Quantile(0.99)}
}

// pool is nil where the pool isn't watched.
func pool(from, to watched.Sample, prefix, acquire string) *Pool {
	by := to.By(prefix+"_connections", "state")
	if by["max"] == 0 {
		return nil
	}
	waits := within(from, to, acquire)
	failures := prefix + "_acquire_failures_total"
	return &Pool{
		Max: by["max"], Total: by["idle"] + by["acquired"] + by["constructing"], Active: by["acquired"], Idle: by["idle"], Waiting: to.Sum(prefix + "_waiting"),
		Acquires: waits.Count, AcquireMeanSeconds: waits.Mean(), AcquireP95Seconds: waits.Quantile(0.95), Failures: to.Sum(failures) - from.Sum(failures),
	}
}

func cache(from, to map[string]float64) *Cache {
	added := func(result string) float64 { return to[result] - from[result] }
	c := &Cache{Hits: added("hit"), Gets: added("hit") + added("miss"), Errors: added("error"), Shared: added("shared")}
	c.Ratio = ratio(c.Hits, c.Gets)
	return c
}

// ratio is nil where there is nothing to have a share of.
func ratio[N int64 | float64](part, whole N) *float64 {
	if whole <= 0 {
		return nil
	}
	r := float64(part) / float64(whole)
	return &r
}

func perSecond(count float64, during time.Duration) float64 {
	if during <= 0 {
		return 0
	}
	return count / during.Seconds()
}
