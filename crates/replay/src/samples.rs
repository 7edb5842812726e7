//! Settings to try every method with: the one list that laws, tests of the engine and benchmarks read.

/// Settings of a method.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Its name.
    pub method: &'static str,
    /// Settings that reuse nothing, whatever is measured.
    pub off: &'static [&'static str],
    /// Settings that reuse something of the built-in model in a run of 14 steps.
    pub eager: &'static [&'static str],
    /// Settings that reuse something whatever is measured, of a model of three blocks.
    pub strong: &'static [&'static str],
    /// Settings with an `X` in place of what switches them off at 0, with as much freedom as their guards allow; empty
    /// for methods that follow a schedule and measure nothing.
    pub scaled: &'static [&'static str],
}

/// One row a method, in the order of the registry. `none` and `schedule` need none.
pub const SAMPLES: &[Sample] = &[
    Sample {
        method: "easycache",
        off: &["easycache,threshold=0,warmup_steps=0"],
        eager: &["easycache,threshold=0.3,warmup_steps=3"],
        strong: &["easycache,threshold=100,warmup_steps=2"],
        scaled: &["easycache,threshold=X,warmup_steps=0", "easycache,threshold=X"],
    },
    Sample {
        method: "navicache",
        off: &["navicache,threshold=0,align_steps=0", "navicache,threshold=0,align_steps=0,reuse=corrected"],
        eager: &[
            "navicache,threshold=0.3,align_steps=3",
            "navicache,threshold=0.3,align_steps=3,reuse=from_cond",
            "navicache,threshold=0.3,align_steps=3,reuse=corrected",
        ],
        strong: &[
            "navicache,threshold=100,align_steps=2,reuse=linear",
            "navicache,threshold=100,align_steps=2,reuse=from_cond",
        ],
        scaled: &[
            "navicache,threshold=X,align_steps=0",
            "navicache,threshold=X,reuse=linear",
            "navicache,threshold=X,align_steps=2,reuse=from_cond",
            "navicache,threshold=X,align_steps=2,reuse=step_over",
            "navicache,threshold=X,align_steps=2,projection=every_step,noise_floor=0.1,uncertainty=1",
            "navicache,threshold=X,align_steps=2,projection=every_step,drift=0.7",
        ],
    },
    Sample {
        method: "precisecache",
        off: &["precisecache,threshold=0"],
        eager: &["precisecache,threshold=1.5", "precisecache,threshold=0,cached_blocks=0.4"],
        strong: &[
            "precisecache,threshold=100,trial_size=1,trial_frames=1,max_run=3,reuse=residual",
            "precisecache,threshold=0,cached_blocks=0.5",
        ],
        scaled: &["precisecache,threshold=X"],
    },
    Sample {
        method: "mixcache",
        off: &["mixcache,threshold=0", "mixcache,interval=1"],
        eager: &[
            "mixcache,threshold=5",
            "mixcache,threshold=5,granularity=cfg",
            "mixcache,threshold=5,granularity=block",
        ],
        strong: &[
            "mixcache,threshold=100,granularity=step",
            "mixcache,threshold=100,granularity=cfg",
            "mixcache,threshold=100,granularity=block",
        ],
        scaled: &[
            "mixcache,threshold=X",
            "mixcache,threshold=X,granularity=block,warmup_steps=0,last_steps=0",
            "mixcache,threshold=X,granularity=cfg",
        ],
    },
    Sample {
        method: "teacache",
        off: &["teacache,threshold=0"],
        eager: &["teacache,threshold=0.3"],
        strong: &["teacache,threshold=100,coefficients=[0,0,0,1,0],signal=modulated_input"],
        scaled: &["teacache,threshold=X,warmup_steps=0,last_steps=0", "teacache:ret_fast,threshold=X"],
    },
    Sample {
        method: "magcache",
        off: &["magcache,threshold=0", "magcache,threshold=0,warmup=0"],
        eager: &["magcache,threshold=0.3"],
        strong: &["magcache,threshold=100,max_run=3"],
        scaled: &["magcache,threshold=X,warmup=0", "magcache,threshold=X,resampling=merge,reuse=scaled"],
    },
    Sample {
        method: "pab",
        off: &["pab,self_range=1,temporal_range=1,cross_range=1,mlp_blocks=0"],
        eager: &["pab"],
        strong: &["pab"],
        scaled: &[],
    },
    Sample {
        method: "fbcache",
        off: &["fbcache,threshold=0"],
        eager: &["fbcache,threshold=0.2"],
        strong: &["fbcache,threshold=100,max_run=4", "fbcache,threshold=100,max_run=4,reuse=two_anchors"],
        scaled: &["fbcache,threshold=X"],
    },
    Sample {
        method: "dbcache",
        off: &[
            "dbcache,threshold=0,first_blocks=1,last_blocks=0",
            "dbcache,threshold=0,first_blocks=1,last_blocks=0,warmup_steps=0",
        ],
        eager: &["dbcache,threshold=0.2,reuse=taylor"],
        strong: &["dbcache,threshold=100,first_blocks=1,last_blocks=1,warmup_steps=2,reuse=taylor"],
        scaled: &["dbcache,threshold=X,first_blocks=2,last_blocks=1,warmup_steps=0,reuse=two_anchors"],
    },
    Sample {
        method: "taylorseer",
        off: &["taylorseer,interval=1", "taylorseer,level=units,interval=1", "taylorseer,level=features,interval=1"],
        eager: &["taylorseer", "taylorseer,level=features", "taylorseer,level=units,order=2,interval=2"],
        strong: &["taylorseer", "taylorseer,level=features,order=2", "taylorseer,level=units"],
        scaled: &[],
    },
    Sample {
        method: "fastercache",
        off: &["fastercache,attention_interval=1,uncond_interval=1"],
        eager: &["fastercache", "fastercache:published"],
        strong: &["fastercache,attention_below=1000,uncond_below=1000,low_growth=1,high_growth=1"],
        scaled: &[],
    },
    Sample {
        method: "dicache",
        off: &["dicache,threshold=0", "dicache,threshold=0,warmup=0"],
        eager: &["dicache,threshold=0.15"],
        strong: &["dicache,threshold=100"],
        scaled: &["dicache,threshold=X,warmup=0"],
    },
    Sample {
        method: "seacache",
        off: &["seacache,threshold=0"],
        eager: &["seacache,threshold=0.5"],
        strong: &["seacache,threshold=100,max_run=3"],
        scaled: &["seacache,threshold=X,reuse=quadratic"],
    },
    Sample {
        method: "tafc",
        off: &["tafc,threshold=0"],
        eager: &["tafc,threshold=0.5,warmup_steps=3"],
        strong: &["tafc,threshold=100", "tafc,threshold=100,reuse=quadratic"],
        scaled: &["tafc,threshold=X", "tafc,threshold=X,warmup_steps=1"],
    },
    Sample {
        method: "bwcache",
        off: &["bwcache,threshold=0"],
        eager: &["bwcache,threshold=1,run=0.2"],
        strong: &["bwcache,threshold=100,reuse=residual"],
        scaled: &["bwcache,threshold=X"],
    },
    Sample {
        method: "adacache",
        off: &["adacache,threshold=0"],
        eager: &["adacache,threshold=5"],
        strong: &["adacache,codebook=steps100,threshold=100"],
        scaled: &["adacache,threshold=X"],
    },
    Sample {
        method: "trend",
        off: &[
            "trend,threshold=0",
            "trend,threshold=0,warmup_steps=0",
            "trend,threshold=0,warmup_steps=0,reuse=corrected",
        ],
        eager: &["trend,threshold=0.02"],
        strong: &["trend,threshold=100,warmup_steps=3", "trend,threshold=100,warmup_steps=3,reuse=corrected"],
        scaled: &["trend,threshold=X,warmup_steps=0", "trend,threshold=X,warmup_steps=1,reuse=corrected"],
    },
    Sample {
        method: "stride",
        off: &[
            "stride,threshold=0",
            "stride,threshold=0,reuse=step_over",
            "stride,threshold=0,warmup_steps=0,reuse=corrected",
        ],
        eager: &["stride,threshold=0.5", "stride,threshold=0.5,reuse=step_over"],
        strong: &[
            "stride,threshold=100,warmup_steps=3,reuse=corrected",
            "stride,threshold=100,warmup_steps=3,reuse=step_over",
        ],
        scaled: &[
            "stride,threshold=X,warmup_steps=0,max_run=4,reuse=step_over",
            "stride,threshold=X,warmup_steps=3,max_run=9,reuse=corrected",
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use navicache_control::cache::{CacheConfig, CacheSpec};

    #[test]
    fn every_method_has_a_row_and_every_setting_is_of_its_method() {
        let methods = CacheConfig::METHODS.iter().map(|about| about.name).filter(|n| !["none", "schedule"].contains(n));
        assert!(methods.eq(SAMPLES.iter().map(|sample| sample.method)));
        for Sample { method, off, eager, strong, scaled } in SAMPLES {
            assert!(!off.is_empty() && !eager.is_empty() && !strong.is_empty(), "{method}");
            for text in [off, eager, strong, scaled].into_iter().flat_map(|list| list.iter()) {
                let spec: CacheSpec = text.replace('X', "1").parse().unwrap();
                assert_eq!(spec.method, *method);
            }
        }
    }
}
