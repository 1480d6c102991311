package metrics

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// ReadSample reads what a worker answers to GET /metrics, in Prometheus's text format. at is when it was asked.
func ReadSample(text io.Reader, at time.Time) (Sample, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(text)
	if err != nil {
		return Sample{}, fmt.Errorf("read the metrics: %w", err)
	}
	return Sample{At: at, families: families}, nil
}

// LaneLag is how far a lane is behind, as [Metrics.SetLag] was told.
type LaneLag struct {
	Topic     string
	Partition int32
	Records   int64
	Seconds   float64
}

// Lag is that of each lane that has been measured, by topic and partition number.
func (s Sample) Lag() []LaneLag {
	type key struct {
		topic     string
		partition int32
	}
	lanes := map[key]*LaneLag{}
	each := func(name string, set func(*LaneLag, float64)) {
		for _, metric := range s.series(name, nil) {
			var k key
			for _, l := range metric.GetLabel() {
				switch l.GetName() {
				case "topic":
					k.topic = l.GetValue()
				case "partition":
					n, err := strconv.ParseInt(l.GetValue(), 10, 32)
					if err != nil {
						n = -1 // no lane of ours: SetLag writes numbers
					}
					k.partition = int32(n)
				}
			}
			if lanes[k] == nil {
				lanes[k] = &LaneLag{Topic: k.topic, Partition: k.partition}
			}
			set(lanes[k], value(metric))
		}
	}
	each("consumer_lag_records", func(l *LaneLag, v float64) { l.Records = int64(v) })
	each("consumer_lag_seconds", func(l *LaneLag, v float64) { l.Seconds = v })
	all := make([]LaneLag, 0, len(lanes))
	for l := range maps.Values(lanes) {
		all = append(all, *l)
	}
	slices.SortFunc(all, func(a, b LaneLag) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	return all
}
