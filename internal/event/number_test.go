package event

import (
	"math/big"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLatency(t *testing.T) {
	for text, want := range map[string]int32{
		"0": 0, "-0": 0, "-0.0": 0, "-0e5": 0, "0e308": 0, "0.999": 0, "1": 1, "12.9": 12, "1.5e1": 15, "1.59e1": 15, "159e-1": 15,
		"1E+3": 1000, "1e-308": 0, "2147483647": 2147483647, "2147483647.9999999999999999": 2147483647, "2.1474836479e9": 2147483647,
		"21474836479e-1": 2147483647, "0.0000000021474836479e18": 2147483647, "0.2147483647999e10": 2147483647,
		"4503599627370497.5e-15": 4, "1" + strings.Repeat("0", 300) + "e-300": 1, "0." + strings.Repeat("0", 299) + "1e300": 1,
		strings.Repeat("9", 9) + "." + strings.Repeat("9", 991): 999999999,
	} {
		require.Equal(t, want, taken(t, with(`"processingLatency":`+text)).Latency, text)
	}
	for _, text := range []string{"-1", "-0.1", "-1e-308", "-1e400", "-1e-400", "-2147483648", "-0." + strings.Repeat("0", 1001) + "1"} {
		refused(t, InvalidValue, with(`"processingLatency":`+text))
	}
	for _, text := range []string{
		"2147483648", "2147483647e1", "2.147483648e9", "1e10", "1e308", "1e400", "0e309", "-0e309", "1e-309", "9223372036854775808", "18446744073709551616",
		strings.Repeat("9", 1000), "0." + strings.Repeat("0", 1000),
	} {
		refused(t, NumberOutOfRange, with(`"processingLatency":`+text))
	}
}

func TestRetentionDays(t *testing.T) {
	for text, want := range map[string]string{
		"1": "1", "2555": "2555", "2555.0": "2555", "2.555e3": "2555", "25550e-1": "2555", "2555.000e0": "2555", "36500": "36500", "365E2": "36500", "0.1e1": "1",
	} {
		row := taken(t, with(`"retentionPolicy":`+text+`,"ttl":"\t"`))
		require.Equal(t, want, string(row.RetentionPolicy), text)
		require.Equal(t, "\t", string(row.TTL))
	}
	for _, text := range []string{
		"0", "-0", "-1", "0.0", "0.5", "2555.5", "36500.1", "36501", "1e5", "1e308", "1e309", "1e-1", "-2555", "1e-400", "1099511627777", "9223372036854778363",
		"18446744073709554171", strings.Repeat("9", 1001),
	} {
		refused(t, InvalidValue, with(`"retentionPolicy":`+text))
	}
	refused(t, NumberOutOfRange, with(`"retentionPolicy":2555.`+strings.Repeat("0", 997)))
	taken(t, with(`"retentionPolicy":2555.`+strings.Repeat("0", 996)))
	refused(t, NumberOutOfRange, with(`"retentionPolicy":0.`+strings.Repeat("0", 308)+`1e309`))
	require.Equal(t, "2555.5", string(taken(t, with(`"retentionPolicy":"2555.5"`)).RetentionPolicy), "a string is a name")
}

func TestNumbersAnywhere(t *testing.T) {
	digits := func(n int) string { return strings.Repeat("7", n) }
	for _, text := range []string{
		digits(1000), "-" + digits(1000), digits(500) + "." + digits(500), "0." + digits(999), digits(1000) + "e308", "1e308", "1e+308", "1E-308",
		"1e0000000000308", "-1e-0308", "0e308", digits(1000) + "e-308", "9007199254740993",
	} {
		for _, around := range [][2]string{{`"x":`, ""}, {`"x":[{"y":`, "}]"}} {
			row := taken(t, with(around[0]+text+around[1]))
			require.Contains(t, string(row.Details), text)
		}
	}
	for _, text := range []string{
		digits(1001), "-" + digits(1001), digits(501) + "." + digits(500), "0." + digits(1000), "1e309", "1e-309", "1E+309", "0e309", "1e0309", "1e2147483648",
		"1e-9223372036854775809", "1e18446744073709551616", "1e" + digits(5000),
	} {
		for _, around := range [][2]string{{`"x":`, ""}, {`"x":[{"y":`, "}]"}} {
			refused(t, NumberOutOfRange, with(around[0]+text+around[1]))
		}
	}
	taken(t, with(`"x":"1e309"`))
}

// FuzzNumber holds the digit arithmetic against math/big.
func FuzzNumber(f *testing.F) {
	for _, text := range []string{"0", "-0.0", "2147483647.999", "1e10", "21474836479e-1", "0.0001e4", "-1e-5", "99999999999999999999e-10"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if text == "" {
			return
		}
		n, end, ok := readNumber([]byte(text), 0)
		if !ok || end != len(text) || n.exponent < -maxExponent || n.exponent > maxExponent {
			return
		}
		exact, ok := new(big.Rat).SetString(text)
		if !ok {
			t.Fatalf("math/big doesn't know %q", text)
		}
		if n.negative != strings.HasPrefix(text, "-") {
			t.Fatalf("the sign of %q", text)
		}
		exact.Abs(exact)
		want := new(big.Int).Quo(exact.Num(), exact.Denom())
		if want.Cmp(big.NewInt(floorLimit)) > 0 {
			want.SetInt64(floorLimit)
		}
		floor, whole := n.magnitude()
		if want.Cmp(big.NewInt(floor)) != 0 || whole != exact.IsInt() {
			t.Fatalf("%q: %d, %t", text, floor, whole)
		}
	})
}
